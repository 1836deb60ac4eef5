"""Groups from folders and from DICOM headers in one column: no patient under two names, and nothing silent."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from medflow.datasets._header_groups import groups_of
from medflow.datasets._spec import Row
from medflow.dicom.facts import DicomFacts

NAMES = st.one_of(st.none(), st.integers(0, 4).map(str))


def said(*pairs: tuple[str | None, str | None]):
    """Groups and findings (check → count) of images with a group of the source and one of the header."""
    rows = [Row(image_id=f"{n}.dcm", path=f"{n}.dcm", labels={}, group=group) for n, (group, _) in enumerate(pairs)]
    headers = {
        row.path: DicomFacts(group=f"patient-{name}", study=None, age=None, sex=None, view=None, burned_in=False)
        for row, (_, name) in zip(rows, pairs, strict=True)
        if name is not None
    }
    groups, findings = groups_of(rows, headers)
    return groups, {item.check: item.count for item in findings}


def test_an_image_without_a_folder_joins_the_folder_of_its_patient():
    assert said(("anna", "7"), (None, "7"), ("berta", "8")) == (["anna", "anna", "berta"], {})


def test_two_folders_of_one_patient_are_united_where_both_tellers_are_needed():
    groups, findings = said(("anna", "7"), ("anne", "7"), (None, "7"), (None, "9"))
    assert groups == ["anna", "anna", "anna", "patient-9"]
    assert findings == {"group_united": 1}


def test_where_the_source_tells_all_it_is_believed_and_the_dispute_is_told():
    assert said(("anna", "7"), ("anne", "7"), ("berta", None)) == (["anna", "anne", "berta"], {"group_disputed": 1})
    assert said(("anna", "7"), ("berta", "8"), (None, None)) == (["anna", "berta", None], {})


def test_images_of_either_teller_alone_are_warned_of():
    groups, findings = said(("anna", None), (None, "7"), (None, "7"))
    assert groups == ["anna", "patient-7", "patient-7"]
    assert findings == {"group_by_header": 2}


def test_headers_alone_are_as_they_were():
    assert said((None, "7"), (None, "8"), (None, None)) == (["patient-7", "patient-8", None], {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES), max_size=12))
def test_where_both_tell_no_name_of_either_is_in_two_groups(pairs) -> None:
    groups, findings = said(*pairs)
    assert [group is None for group in groups] == [pair == (None, None) for pair in pairs]
    mixed = any(group is None and name is not None for group, name in pairs)
    for teller in (0, 1):
        for value in {pair[teller] for pair in pairs} - {None}:
            found = {group for group, pair in zip(groups, pairs, strict=True) if pair[teller] == value}
            assert len(found) == 1 or (not mixed and teller == 1 and "group_disputed" in findings)
