//! Adapters from the engine trait to what runs instances
