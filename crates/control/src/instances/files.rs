//! Files in and out of an instance.

use api::{ErrorCode, Problem, service::ByteStream};

use crate::Control;

impl Control {
    pub(crate) async fn read_files(&self, name: &str, _path: &str) -> Result<ByteStream, Problem> {
        self.find(name).await?;
        Err(Problem::new(ErrorCode::Unsupported, "not yet"))
    }

    pub(crate) async fn write_files(
        &self,
        name: &str,
        _path: &str,
        _tar: ByteStream,
    ) -> Result<(), Problem> {
        self.find(name).await?;
        Err(Problem::new(ErrorCode::Unsupported, "not yet"))
    }
}
