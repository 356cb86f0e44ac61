//! Content-addressed image store, registry client, layers and recipes
