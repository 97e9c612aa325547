"""python -m lic"""

import sys

from lic.cli import main

sys.exit(main())
