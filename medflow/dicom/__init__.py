"""DICOM files: pixels as any other image has them, and the few facts that are no secret.

``image`` turns bytes into an 8-bit picture (``medflow.preprocess`` calls it), ``facts`` reads patient group, age, sex
and view for a listing. Both read the elements that they name and no others: names, dates, institutions and
identifiers of a person are never parsed, so they cannot be stored, logged or told in an error.

Nothing is imported here: pydicom costs a quarter of a second, and most images are no DICOM files.
"""
