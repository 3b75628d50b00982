"""The operator. `crd` is the schema, `core` decides (pure), `shell` observes and acts. Holds no bucket credentials and reads no Secrets of users."""
