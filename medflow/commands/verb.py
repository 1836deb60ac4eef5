"""What all verbs share: the command class and the options that several of them have."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from medflow.commands import output

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to standard output.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings over those of the YAML, such as train.epochs=2; values are YAML.",
        show_default=False,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|ZIP|kaggle|s3://…",
        help="Where the images are: a folder, a .zip, Kaggle, or a bucket's. Sets source.kind and source.path.",
        show_default=False,
    ),
]
Metadata = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|s3://…",
        help="A table that the dataset's archive lacks, such as one that tells lesions. Sets source.metadata.",
        show_default=False,
    ),
]
RunName = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="What the run is called: letters, digits, and . _ - between. A number is added where it is taken.",
        show_default=False,
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="NAME[@VERSION|@STAGE] with the dataset's NAME, or `production`: the model promoted last.",
    ),
]


On = Annotated[
    str,
    typer.Option(metavar="PLACE", envvar="MEDFLOW_ON", help="Where it runs: a name in configs/on, or a YAML's path."),
]

At = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="PLACE",
        envvar="MEDFLOW_ON",
        help="Where the runs were made: a name in configs/on, or a YAML's path.",
    ),
]


class Verb(TyperCommand):
    """A command whose standard output holds its result alone."""

    def invoke(self, ctx: Any) -> Any:
        with output.results():
            return super().invoke(ctx)
