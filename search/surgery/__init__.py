"""
From a network to the space of its students, their exact costs, and the students themselves.

    found = survey(model, example, SpaceSpec())
    candidate = found.space.sample(rng)
    found.costs([candidate])["macs"]
    student = found.graft(candidate)
"""

from search.surgery.anatomy import Finding, Survey
from search.surgery.knife import Donor
from search.surgery.operators import FactorKey, Factors
from search.surgery.places import Place, Width
from search.surgery.surveyor import survey

__all__ = ["Donor", "FactorKey", "Factors", "Finding", "Place", "Survey", "Width", "survey"]
