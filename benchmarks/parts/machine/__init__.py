"""The sm_90 machine code that Triton makes of a kernel, run and counted on the host.

``ptx`` reads it, ``operations`` says what one lane's instruction computes, ``translate`` makes
numbers of both for the interpreter ``machine.c``, ``run`` starts launches on it, ``count`` adds up
what they executed. Not here: timing, caches, memory order, and other chips than sm_90.
"""
