//! Durable linear operations with idempotent steps, undo and recovery
