//! Errors that name the field, gathered so that a user sees all of them at once.

use std::fmt;

/// One thing wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field as it stands in the request: `limits.memory_bytes`, `ports[2].host_port`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A spec that cannot be accepted: every field that is wrong, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The fields, in the order of the spec.
    pub fields: Vec<FieldError>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.fields.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", error.field, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

/// Gathers field errors during a validation.
#[derive(Debug, Default)]
pub struct Report {
    fields: Vec<FieldError>,
}

impl Report {
    /// Notes that `field` is wrong.
    pub fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.fields.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
    }

    /// Notes that `field` is wrong unless `holds`.
    pub fn require(&mut self, holds: bool, field: &str, message: impl Into<String>) {
        if !holds {
            self.add(field, message);
        }
    }

    /// The verdict.
    ///
    /// # Errors
    /// All that was noted, if anything was.
    pub fn finish(self) -> Result<(), Invalid> {
        if self.fields.is_empty() {
            Ok(())
        } else {
            Err(Invalid {
                fields: self.fields,
            })
        }
    }
}
