"""What a job may name: teachers, datasets, distillers, strategies and costs."""

from __future__ import annotations

from fastapi import APIRouter

from search.catalog import KINDS
from search.errors import NotFound, did_you_mean
from service.auth import may_read
from service.deps import AskingDep
from service.description import answers
from service.schemas import CatalogEntry, CatalogKinds, CatalogPage

router = APIRouter(prefix="/v1/catalog", tags=["catalog"], dependencies=[may_read])

_EXAMPLE = {
    "kind": "distillers",
    "entries": [
        {
            "name": "supervised",
            "summary": "Cross-entropy on the labels alone, without the teacher.",
            "options": {"type": "object", "properties": {}, "additionalProperties": False},
        }
    ],
}


@router.get(
    "",
    operation_id="catalog_kinds",
    responses=answers("UNAUTHENTICATED", example={"kinds": {kind: f"/v1/catalog/{kind}" for kind in KINDS}}),
)
def kinds() -> CatalogKinds:
    """The kinds of plugin, and where each is described."""
    return CatalogKinds(kinds={kind: f"/v1/catalog/{kind}" for kind in KINDS})


@router.get(
    "/{kind}", operation_id="catalog", responses=answers("UNAUTHENTICATED", "NOT_FOUND", "BUSY", example=_EXAMPLE)
)
async def catalog(kind: str, asking: AskingDep) -> CatalogPage:
    """The plugins of a kind that are installed here: what each is, and the options it takes as JSON schema."""
    if kind not in KINDS:
        raise NotFound(
            f"there is no kind of plugin `{kind[:64]}`{did_you_mean(kind[:64], KINDS)}; there are {', '.join(KINDS)}"
        )
    return CatalogPage(kind=kind, entries=[CatalogEntry.model_validate(entry) for entry in await asking.catalog(kind)])
