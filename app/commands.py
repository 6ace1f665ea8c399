"""Every command: its menu, its words, its keys. All of them are in the menu bar; buttons only repeat them."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtGui import QAction, QKeySequence

Key = QKeySequence.StandardKey
Role = QAction.MenuRole


@dataclass(frozen=True)
class Command:
    """One of them. `name` is the window's method that does it, with `do_` before it."""

    name: str
    menu: str
    text: str
    keys: tuple[str | Key, ...] = ()
    role: Role = Role.NoRole
    here: bool = False  # its key counts in the picture and the gallery only: elsewhere it is a letter
    checkable: bool = False


COMPARE, COMPARED = "&Compare", "&Done Comparing"
PAINT, DONE = "&Paint a Mask", "&Done with the Mask"  # what one command says, by whether it is painted now
MENUS = ("&File", "&Edit", "&Picture", "&Mask", "&Queue", "&View", "&Help")

COMMANDS: tuple[Command | str, ...] = (
    Command("open", "&File", "&Open Picture…", (Key.Open,)),
    Command("save", "&File", "&Save a Copy…", (Key.Save,)),
    Command("reveal", "&File", "Show in &Folder"),
    "&File",
    Command("models", "&File", "&Models…", ("Ctrl+L",)),
    Command("backends", "&File", "&Where Pictures Are Made…", ("Ctrl+Shift+B",)),
    Command("preferences", "&File", "Se&ttings…", ("Ctrl+,",), Role.PreferencesRole),
    "&File",
    Command("quit", "&File", "&Quit mlxldm", (Key.Quit, "Ctrl+Q"), Role.QuitRole),
    Command("undo", "&Edit", "&Undo", (Key.Undo,)),
    Command("redo", "&Edit", "&Redo", (Key.Redo,)),
    "&Edit",
    Command("copy", "&Edit", "&Copy Picture", (Key.Copy,)),
    Command("copy_prompt", "&Edit", "Copy &Prompt", ("Ctrl+Alt+C",)),
    Command("paste", "&Edit", "P&aste", (Key.Paste,)),
    "&Edit",
    Command("search", "&Edit", "&Search", (Key.Find, "Ctrl+Alt+F")),
    Command("prompt", "&Edit", "&Go to the Prompt", ("Ctrl+E",)),
    Command("generate", "&Picture", "&Generate", ("Ctrl+Return", "Ctrl+Enter")),
    Command("generate_next", "&Picture", "Generate &Next", ("Ctrl+Shift+Return", "Ctrl+Shift+Enter")),
    "&Picture",
    Command("reuse", "&Picture", "&Reuse Settings", ("Ctrl+R",)),
    Command("reuse_new", "&Picture", "Reuse with a New &Seed", ("Ctrl+Shift+R",)),
    Command("make_again", "&Picture", "&Make Again"),
    Command("make_again_on", "&Picture", "Make Again &Elsewhere…"),
    Command("variations", "&Picture", "&Variations", ("Ctrl+Alt+V",)),
    Command("upscale", "&Picture", "&Upscale", ("Ctrl+U",)),
    Command("enlarge", "&Picture", "&Enlarge", ("Ctrl+Shift+U",)),
    Command("compare", "&Picture", COMPARE, ("Ctrl+K",)),
    Command("start_from", "&Picture", "Start &from This Picture", ("Ctrl+Shift+O",)),
    "&Picture",
    Command("favourite", "&Picture", "&Favourite", ("Ctrl+D",), checkable=True),
    Command("details", "&Picture", "&Details", ("Ctrl+Shift+I",)),
    Command("trash", "&Picture", "Move to &Trash", ("Backspace", "Delete"), here=True),
    Command("mask", "&Mask", PAINT, ("Ctrl+I",)),
    Command("extend", "&Mask", "Paint Be&yond the Edges", ("Ctrl+Shift+E",)),
    Command("only_masked", "&Mask", "Only the Masked &Area", ("Ctrl+Shift+A",), checkable=True),
    "&Mask",
    Command("import_mask", "&Mask", "&Open Mask…"),
    Command("export_mask", "&Mask", "&Save Mask…"),
    "&Mask",
    Command("stop", "&Queue", "&Stop", ("Ctrl+.", "Esc")),
    Command("force_stop", "&Queue", "&Force Stop"),
    Command("pause", "&Queue", "&Pause", ("Ctrl+P",)),
    "&Queue",
    Command("again", "&Queue", "&Try Again"),
    Command("earlier", "&Queue", "Move &Earlier"),
    Command("later", "&Queue", "Move &Later"),
    Command("remove", "&Queue", "&Remove"),
    "&Queue",
    Command("clear_waiting", "&Queue", "&Clear Waiting", ("Ctrl+Alt+.",)),
    Command("clear_ended", "&Queue", "Clear &What Ended"),
    "&Queue",
    Command("queue", "&Queue", "&Go to the Queue", ("Ctrl+J",)),
    Command("unload", "&Queue", "Free the &Memory"),
    Command("large", "&View", "&Large", ("Space",), here=True),
    Command("fit", "&View", "&Fit", ("Ctrl+9",)),
    Command("pixels", "&View", "100 &%", ("Ctrl+8",)),
    Command("zoom_in", "&View", "Zoom &In", (Key.ZoomIn, "Ctrl+=")),
    Command("zoom_out", "&View", "Zoom &Out", (Key.ZoomOut,)),
    "&View",
    Command("live", "&View", "Live &Picture", ("Ctrl+Shift+L",)),
    Command("next_picture", "&View", "&Older Picture", ("Ctrl+Right",)),
    Command("previous_picture", "&View", "&Newer Picture", ("Ctrl+Left",)),
    "&View",
    Command("controls", "&View", "&Controls", ("Ctrl+1",), checkable=True),
    Command("gallery", "&View", "&Gallery and Queue", ("Ctrl+3",), checkable=True),
    Command("only_picture", "&View", "Only the Pict&ure", ("Ctrl+0",)),
    Command("settings_shown", "&View", "&Settings", ("Ctrl+2",), checkable=True),
    Command("advanced_shown", "&View", "Ad&vanced Settings", ("Ctrl+Alt+2",), checkable=True),
    "&View",
    Command("full_screen", "&View", "F&ull Screen", (Key.FullScreen,)),
    Command("shortcuts", "&Help", "&Keyboard Shortcuts", ("Ctrl+?", "Ctrl+/")),
    Command("about", "&Help", "&About mlxldm", (), Role.AboutRole),
)
