"""The same numbers as torch's modules, sooner: convolutions and blocks with derivatives of their own.

`blocks` is what a network calls. On a CPU it runs the kernels in C (`native`, `kernels/`); on a GPU forms of a
convolution and compiled functions, of which a trial picks the fastest (`trials`).
"""
