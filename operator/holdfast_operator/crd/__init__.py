"""The custom resource: pydantic models that are both the parser of a spec and the only source of the published schema (`scripts/generate`)."""
