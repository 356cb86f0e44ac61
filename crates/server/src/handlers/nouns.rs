//! Networks, volumes, logins and tokens.

use api::Problem;

use crate::{call::Call, reply::Reply};

pub(super) async fn list_networks(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_networks().await?)
}

pub(super) async fn create_network(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().create_network(request).await?)
}

pub(super) async fn show_network(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().show_network(&call.name).await?)
}

pub(super) async fn delete_network(call: Call) -> Result<Reply, Problem> {
    call.service().delete_network(&call.name).await?;
    Ok(Reply::Empty)
}

pub(super) async fn list_volumes(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_volumes().await?)
}

pub(super) async fn create_volume(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().create_volume(request).await?)
}

pub(super) async fn show_volume(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().show_volume(&call.name).await?)
}

pub(super) async fn delete_volume(call: Call) -> Result<Reply, Problem> {
    call.service().delete_volume(&call.name).await?;
    Ok(Reply::Empty)
}

pub(super) async fn list_logins(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_logins().await?)
}

pub(super) async fn log_in(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().log_in(request).await?)
}

pub(super) async fn log_out(call: Call) -> Result<Reply, Problem> {
    call.service().log_out(&call.name).await?;
    Ok(Reply::Empty)
}

pub(super) async fn list_tokens(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_tokens().await?)
}

pub(super) async fn create_token(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().create_token(request).await?)
}

pub(super) async fn revoke_token(call: Call) -> Result<Reply, Problem> {
    call.service().revoke_token(&call.name).await?;
    Ok(Reply::Empty)
}
