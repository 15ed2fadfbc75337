"""cacheyard: a self-hosted Distributed Cache Service. docs/architecture.md is the map."""
