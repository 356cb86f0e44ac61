//! The daemon itself, and operations.

use std::sync::LazyLock;

use api::Problem;
use bytes::Bytes;

use crate::{call::Call, reply::Reply};

pub(super) async fn info(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().info().await?)
}

pub(super) async fn doctor(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().doctor().await?)
}

/// Made once: it is the same for as long as the program is.
pub(super) async fn openapi(_: Call) -> Result<Reply, Problem> {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
        serde_json::to_vec(&api::openapi::document())
            .expect("a JSON value can be written")
            .into()
    });
    Ok(Reply::Bytes(DOCUMENT.clone()))
}

pub(super) async fn metrics(call: Call) -> Result<Reply, Problem> {
    let mut text = call.service().metrics().await?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    call.shared.metrics.render(&mut text);
    Ok(Reply::Bytes(text.into()))
}

pub(super) async fn list_operations(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_operations().await?)
}

pub(super) async fn show_operation(mut call: Call) -> Result<Reply, Problem> {
    let wait = call.wait()?;
    Reply::json(&call.service().show_operation(&call.name, wait).await?)
}

pub(super) async fn cancel_operation(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().cancel_operation(&call.name).await?)
}

pub(super) async fn retry_operation(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().retry_operation(&call.name).await?)
}
