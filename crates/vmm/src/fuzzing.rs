//! Entry points of fuzz targets: each takes any bytes and must neither panic nor hang.

use memory::Ram;

use crate::{
    boot::Kernel,
    control::{Request, protocol::decode},
};

/// A kernel file, looked through and loaded.
pub fn kernel(bytes: &[u8]) {
    let Ok(kernel) = Kernel::parse(bytes.to_vec()) else {
        return;
    };
    let ram = Ram::new(8 << 20).expect("8 MiB of memory can be had");
    let _refused = kernel.load(&ram);
}

/// A configuration.
pub fn config(bytes: &[u8]) {
    let _refused = crate::VmConfig::parse(bytes);
}

/// What a client of the control socket sends.
pub fn control(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    while let Ok(Some(request)) = decode::<Request>(&mut bytes) {
        drop(request);
    }
}
