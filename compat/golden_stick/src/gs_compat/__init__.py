"""Scripts written for ``mindspore_gs`` over Golden Stick's own line.

The names they import are in ``facade/mindspore_gs``, laid out as theirs; each module there only says which names of
this package it offers. ``finder`` lets Python find them, and stands aside for a real ``mindspore_gs``.
"""
