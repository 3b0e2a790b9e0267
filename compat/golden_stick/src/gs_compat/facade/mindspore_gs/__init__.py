"""The names of ``mindspore_gs`` that scripts import, answered by golden-stick-compat."""
