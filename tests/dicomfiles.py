"""DICOM files made by pydicom, for tests. Every element that identifies a person holds a canary."""

from __future__ import annotations

import tempfile
from io import BytesIO
from pathlib import Path

import gdcm
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import set_pixel_data

CANARY = "Canary"
"""In every value that identifies somebody, and nowhere else."""
#: Safe Harbor's identifiers and what PS3.15 table E.1-1 removes, as far as they are text; UIDs cannot hold letters.
IDENTIFYING = {
    "PatientName": "Canary^Jane",
    "PatientBirthDate": "Canary",
    "PatientAddress": "Canary Street 1",
    "OtherPatientNames": "Canary^Joan",
    "OtherPatientIDs": "Canary-2",
    "PatientTelephoneNumbers": "Canary 555",
    "PatientComments": "Canary said so",
    "AdditionalPatientHistory": "Canary history",
    "IssuerOfPatientID": "Canary clinic",
    "StudyDate": "Canary",
    "StudyTime": "Canary",
    "SeriesDate": "Canary",
    "AcquisitionDateTime": "Canary",
    "AccessionNumber": "Canary-3",
    "StudyID": "Canary-4",
    "StudyDescription": "Canary thorax",
    "SeriesDescription": "Canary series",
    "ImageComments": "Canary comment",
    "InstitutionName": "Canary Hospital",
    "InstitutionAddress": "Canary Road",
    "StationName": "Canary-5",
    "DeviceSerialNumber": "Canary-6",
    "ReferringPhysicianName": "Canary^Doctor",
    "PerformingPhysicianName": "Canary^Doctor",
    "OperatorsName": "Canary^Operator",
    "RequestingPhysician": "Canary^Doctor",
}


def dataset(pixels: np.ndarray, **elements: object) -> Dataset:
    """An image of a radiograph: ``pixels`` (rows, columns) or RGB, 8 or 16 bits, signed or not; then ``elements``."""
    made = Dataset()
    made.SOPClassUID = uid.SecondaryCaptureImageStorage
    made.SOPInstanceUID = "1.2.3.4"
    made.PatientID = "Canary-1"
    made.StudyInstanceUID = "1.2.3"
    made.Rows, made.Columns = pixels.shape[:2]
    made.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = pixels.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(made, name, value)
    if "BitsStored" in elements and "HighBit" not in elements:
        made.HighBit = made.BitsStored - 1
    return made


def file(made: Dataset, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    """``made``, whose pixel data is already as ``syntax`` wants it, as the bytes of a file."""
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    if made.SamplesPerPixel == 1 and made.BitsAllocated == 16 and syntax == uid.ExplicitVRBigEndian:
        made.PixelData = np.frombuffer(made.PixelData, dtype=np.uint16).byteswap().tobytes()
    if syntax.is_encapsulated:
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    stream = BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def encapsulated(pixels: np.ndarray, frame: bytes, syntax: uid.UID, **elements: object) -> bytes:
    """A file whose one frame is ``frame``, a code stream; the header describes ``pixels``."""
    return file(dataset(pixels, **{"PixelData": encapsulate([frame]), **elements}), syntax)


def compressed(pixels: np.ndarray, syntax: uid.UID, **elements: object) -> bytes:
    """A file compressed by pydicom's own encoder (RLE here)."""
    made = dataset(pixels, **elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    set_pixel_data(made, pixels, made.PhotometricInterpretation, made.BitsStored)
    made.compress(syntax, encoding_plugin="pydicom", generate_instance_uid=False)  # gdcm aborts on some
    stream = BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def transcoded(data: bytes, syntax: int) -> bytes:
    """The same image as gdcm compresses it."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = str(Path(folder) / "plain.dcm"), str(Path(folder) / "packed.dcm")
        Path(plain).write_bytes(data)
        reader = gdcm.ImageReader()
        reader.SetFileName(plain)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(packed)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        return Path(packed).read_bytes()


LOSSLESS = {
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG lossless SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
    "deflated": gdcm.TransferSyntax.DeflatedExplicitVRLittleEndian,
}
