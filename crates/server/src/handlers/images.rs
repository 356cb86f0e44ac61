//! Images.

use api::{Problem, service::ExportFormat};

use crate::{call::Call, reply::Reply};

pub(super) async fn list(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().list_images().await?)
}

pub(super) async fn df(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().image_df().await?)
}

pub(super) async fn show(mut call: Call) -> Result<Reply, Problem> {
    let image = call.query.required("image")?;
    Reply::json(&call.service().show_image(&image).await?)
}

pub(super) async fn delete(mut call: Call) -> Result<Reply, Problem> {
    let image = call.query.required("image")?;
    call.service().delete_image(&image).await?;
    Ok(Reply::Empty)
}

pub(super) async fn pull(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().pull_image(request).await?)
}

pub(super) async fn push(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().push_image(request).await?)
}

pub(super) async fn build(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().build_image(request).await?)
}

pub(super) async fn import(mut call: Call) -> Result<Reply, Problem> {
    let reference = call.query.text("reference");
    let tar = call.stream();
    Reply::json(&call.service().import_image(reference, tar).await?)
}

pub(super) async fn export(mut call: Call) -> Result<Reply, Problem> {
    let image = call.query.required("image")?;
    let formats = [
        ("oci", ExportFormat::Oci),
        ("docker", ExportFormat::Docker),
        ("rootfs", ExportFormat::RootFs),
    ];
    let format = call.query.choice("format", &formats)?;
    let format = format.unwrap_or(ExportFormat::Oci);
    let tar = call.service().export_image(&image, format).await?;
    Ok(Reply::Stream(tar))
}

pub(super) async fn tag(mut call: Call) -> Result<Reply, Problem> {
    let request = call.json().await?;
    Reply::json(&call.service().tag_image(request).await?)
}

pub(super) async fn gc(call: Call) -> Result<Reply, Problem> {
    Reply::json(&call.service().gc_images().await?)
}
