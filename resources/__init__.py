"""What the assets need from outside: the study and its folders, the subject model, the validator."""

from resources.subject import SubjectResource
from resources.validator import Rule, ValidatorResource, Verdict
from resources.workspace import StudyGraph, Workspace

__all__ = ["Rule", "StudyGraph", "SubjectResource", "ValidatorResource", "Verdict", "Workspace"]
