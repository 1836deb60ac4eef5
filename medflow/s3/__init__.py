"""Images in a bucket: what lies there, bringing it here whole, and putting a folder or archive there by content.

Any S3-compatible store does. ``Access`` says how to reach it; nothing here knows ZenML.
"""

from medflow.s3.access import AMBIENT, Access
from medflow.s3.bucket import Item, Place
from medflow.s3.download import bring, bring_file, bring_matching, file_fingerprint, fingerprint, listable
from medflow.s3.upload import upload, upload_file, upload_named

__all__ = [
    "AMBIENT",
    "Access",
    "Item",
    "Place",
    "bring",
    "bring_file",
    "bring_matching",
    "file_fingerprint",
    "fingerprint",
    "listable",
    "upload",
    "upload_file",
    "upload_named",
]
