"""The .lic format for imageio, v2 and v3.

Importing this package registers the plugin "lic". An installed lic-codec does so by itself (see `lic_startup`);
where that is turned off, or .pth files aren't read, `import imageio_lic` is the way by hand.
"""

from imageio.config import FileExtension, PluginConfig, known_extensions, known_plugins

known_plugins["lic"] = PluginConfig(name="lic", class_name="LicPlugin", module_name="imageio_lic.plugin")
known_extensions[".lic"] = [FileExtension(name="Learned image codec", extension=".lic", priority=["lic"])]

# A file without an extension goes to each plugin in turn, and Pillow has no 16-bit colour: let it come later.
for name in [name for name in known_plugins if name != "lic"]:
    known_plugins[name] = known_plugins.pop(name)
