//! Segments: descriptors ([`descriptor`]), loading of segment registers ([`load`]), and stacks
//! while they are pushed to or popped from ([`stack`]).

pub mod descriptor;
pub mod load;
pub mod stack;

/// `es` in [`super::Core::segments`].
pub const ES: usize = 0;
/// `cs`.
pub const CS: usize = 1;
/// `ss`.
pub const SS: usize = 2;
/// `ds`.
pub const DS: usize = 3;
/// `fs`.
pub const FS: usize = 4;
/// `gs`.
pub const GS: usize = 5;
