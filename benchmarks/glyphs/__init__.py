"""How the embedded data set `glyphs` is made: which characters, how they are drawn, which look alike."""
