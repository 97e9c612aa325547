"""Rate-distortion benches of the installed models beside other formats and published curves."""
