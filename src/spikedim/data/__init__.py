"""Data sets: names and paths in, checked arrays out; encoders; downloads of public sets."""

from spikedim.data.build import as_dataset, make_dataset
from spikedim.data.catalog import Catalog, DatasetEntry, list_datasets, load_dataset
from spikedim.data.dataset import Dataset, DatasetSummary, Split
from spikedim.data.download import PUBLIC_SETS, PublicSet, RemoteFile, download
from spikedim.data.encoders import ENCODERS, encode
from spikedim.data.events import Events, Frames
from spikedim.data.formats import LAYOUTS, Layout
from spikedim.data.representations import (
    Represented,
    list_representations,
    represent,
    representation,
    represented,
)

__all__ = [
    "ENCODERS",
    "LAYOUTS",
    "PUBLIC_SETS",
    "Catalog",
    "Dataset",
    "DatasetEntry",
    "DatasetSummary",
    "Events",
    "Frames",
    "Layout",
    "PublicSet",
    "RemoteFile",
    "Represented",
    "Split",
    "as_dataset",
    "download",
    "encode",
    "list_datasets",
    "list_representations",
    "load_dataset",
    "make_dataset",
    "represent",
    "representation",
    "represented",
]
