//! Images as shown, and what may be asked of them.

use std::{collections::HashMap, io, path::PathBuf};

use api::{
    ErrorCode, Image, ImageBuild, ImageDetail, ImageDf, ImageDfRow, ImageGc, ImageLayer, ImagePull,
    ImagePush, ImageTag, Operation, Problem, Recipe,
    service::{ByteStream, ExportFormat},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use image::{Digest, InUse, Job};
use model::operation::OperationKind;
use tokio::{io::AsyncWriteExt, sync::mpsc};

use crate::{
    Control,
    error::{chain, from_images, internal, joined, wrong_field},
    operations::{BuildInput, ImportInput, PullInput, PushInput},
};

/// Pieces of an export in flight.
const IN_FLIGHT: usize = 16;
/// Debian's release when the host is no Debian.
const DEFAULT_SUITE: &str = "stable";

impl Control {
    pub(crate) async fn list_of_images(&self) -> Result<Vec<Image>, Problem> {
        let users = self.users_of_images().await?;
        let images = self.blocking_images(image::Store::list).await?;
        let mut rows = Vec::new();
        for image in &images {
            let count = users.get(&image.id.to_string()).copied().unwrap_or(0);
            if image.names.is_empty() {
                rows.push(shown(image, String::new(), count));
            }
            rows.extend(
                image
                    .names
                    .iter()
                    .map(|name| shown(image, name.familiar(), count)),
            );
        }
        Ok(rows)
    }

    /// How many instances are made from each image, by digest.
    async fn users_of_images(&self) -> Result<HashMap<String, u64>, Problem> {
        let mut users = HashMap::new();
        for (record, _) in self.all().await? {
            if let Some(digest) = &record.image_digest {
                *users.entry(digest.clone()).or_default() += 1;
            }
        }
        Ok(users)
    }

    pub(crate) async fn image_detail(&self, text: &str) -> Result<ImageDetail, Problem> {
        let users = self.users_of_images().await?;
        let wanted = text.to_owned();
        self.blocking_images(move |images| {
            let image = images.get(&wanted)?;
            let config = images.config(&image.id)?;
            let manifest = images.manifest(&image.id)?;
            let layer = |(blob, diff_id): (&image::Descriptor, &Digest)| ImageLayer {
                digest: blob.digest.to_string(),
                diff_id: diff_id.to_string(),
                size_bytes: blob.size,
            };
            let layers = manifest
                .layers
                .iter()
                .zip(&image.layers)
                .map(layer)
                .collect();
            let run = config.config;
            let named = |text: String| (!text.is_empty()).then_some(text);
            let name = image
                .names
                .first()
                .map(image::Reference::familiar)
                .unwrap_or_default();
            let count = users.get(&image.id.to_string()).copied().unwrap_or(0);
            Ok(ImageDetail {
                image: shown(&image, name, count),
                layers,
                entrypoint: run.entrypoint,
                command: run.cmd,
                env: run.env,
                user: named(run.user),
                workdir: named(run.working_dir),
                labels: run.labels,
            })
        })
        .await
    }

    pub(crate) async fn disk_usage(&self) -> Result<ImageDf, Problem> {
        let users = self.users_of_images().await?;
        let usage = self.blocking_images(image::Store::usage).await?;
        let idle = |row: &&image::ImageUsage| {
            row.image.names.is_empty() && !users.contains_key(&row.image.id.to_string())
        };
        Ok(ImageDf {
            reclaimable_bytes: usage
                .images
                .iter()
                .filter(idle)
                .map(|row| row.unique_bytes)
                .sum(),
            images: usage
                .images
                .iter()
                .map(|row| ImageDfRow {
                    reference: row
                        .image
                        .names
                        .first()
                        .map(image::Reference::familiar)
                        .unwrap_or_default(),
                    digest: row.image.id.to_string(),
                    size_bytes: row.shared_bytes + row.unique_bytes,
                    unique_bytes: row.unique_bytes,
                    shared_bytes: row.shared_bytes,
                })
                .collect(),
            total_bytes: usage.layer_bytes + usage.blob_bytes,
            apparent_bytes: usage.unshared_bytes + usage.blob_bytes,
        })
    }

    pub(crate) async fn delete_image_name(&self, text: &str) -> Result<(), Problem> {
        let users = self.users_of_images().await?;
        let wanted = text.to_owned();
        let image = self
            .blocking_images(move |images| images.get(&wanted))
            .await?;
        let count = users.get(&image.id.to_string()).copied().unwrap_or(0);
        // A name of several may go; the last one only when nothing is made from the image.
        if count > 0 && image.names.len() <= 1 {
            let text = format!("image {text:?} is used by {count} instance(s)");
            return Err(Problem::new(ErrorCode::Conflict, text)
                .hint("delete them first; berth list --filter image=… shows them"));
        }
        let wanted = text.to_owned();
        self.blocking_images(move |images| images.untag(&wanted))
            .await?;
        self.collect_garbage().await?;
        self.inner
            .events
            .tell("image.removed", format!("images/{text}"), "removed", []);
        Ok(())
    }

    pub(crate) async fn collect_garbage(&self) -> Result<ImageGc, Problem> {
        let _collecting = self.inner.collection.write().await;
        let mut in_use = InUse::default();
        for (record, _) in self.all().await? {
            let digest = record.image_digest.as_deref().map(str::parse::<Digest>);
            in_use.images.extend(digest.and_then(Result::ok));
        }
        let report = self
            .blocking_images(move |images| images.gc(&in_use))
            .await?;
        let removed = report.images.len() + report.layers.len() + report.blobs;
        Ok(ImageGc {
            freed_bytes: report.freed_bytes,
            removed: removed as u64,
        })
    }

    pub(crate) async fn tag(&self, request: ImageTag) -> Result<Image, Problem> {
        let name = crate::operations::local_reference(&request.reference)
            .map_err(|error| wrong_field("reference", error.to_string()))?;
        self.blocking_images(move |images| {
            let digest = images.resolve(&request.image)?;
            images.tag(&digest, &name)?;
            let image = images.get(&digest.to_string())?;
            Ok(shown(&image, name.familiar(), 0))
        })
        .await
    }

    pub(crate) async fn pull(&self, request: ImagePull) -> Result<Operation, Problem> {
        crate::operations::reference(&request.reference)
            .map_err(|error| wrong_field("reference", error.to_string()))?;
        let resource = format!("images/{}", request.reference);
        let input = PullInput {
            reference: request.reference,
            platform: request.platform,
            password: request.auth.map(|auth| self.inner.passwords.hold(auth)),
        };
        self.launch(OperationKind::ImagePull, &input, resource)
            .await
    }

    pub(crate) async fn push(&self, request: ImagePush) -> Result<Operation, Problem> {
        if let Some(destination) = &request.reference {
            crate::operations::reference(destination)
                .map_err(|error| wrong_field("reference", error.to_string()))?;
        }
        let wanted = request.image.clone();
        self.blocking_images(move |images| images.resolve(&wanted))
            .await?;
        let resource = format!("images/{}", request.image);
        let input = PushInput {
            reference: request.reference.unwrap_or_else(|| request.image.clone()),
            image: request.image,
            password: request.auth.map(|auth| self.inner.passwords.hold(auth)),
        };
        self.launch(OperationKind::ImagePush, &input, resource)
            .await
    }

    pub(crate) async fn build(&self, request: ImageBuild) -> Result<Operation, Problem> {
        let (recipe, usual) = match request.recipe {
            Recipe::Busybox => (image::Recipe::Busybox, "busybox".to_owned()),
            Recipe::Debian => {
                let suite = request.suite.unwrap_or_else(host_suite);
                let name = match (request.vm, request.system) {
                    (true, _) => "debian-vm",
                    (false, true) => "debian-system",
                    (false, false) => "debian",
                };
                let usual = format!("{name}:{suite}");
                let (packages, systemd) = (request.packages, request.system);
                let recipe = image::DebianRecipe {
                    suite,
                    packages,
                    systemd,
                    machine: request.vm,
                    mirror: None,
                };
                (image::Recipe::Debian(recipe), usual)
            }
        };
        let name = request.name.unwrap_or(usual);
        crate::operations::local_reference(&name)
            .map_err(|error| wrong_field("name", error.to_string()))?;
        let resource = format!("images/{name}");
        let input = BuildInput {
            recipe,
            name,
            fresh: request.fresh,
            vm: request.vm,
        };
        self.launch(OperationKind::ImageBuild, &input, resource)
            .await
    }

    pub(crate) async fn import(
        &self,
        reference: Option<String>,
        tar: ByteStream,
    ) -> Result<Operation, Problem> {
        if let Some(name) = &reference {
            crate::operations::local_reference(name)
                .map_err(|error| wrong_field("reference", error.to_string()))?;
        }
        let uploads = self.node().parts().paths.uploads();
        let file = uploads.join(format!("{}.tar", uuid::Uuid::now_v7()));
        if let Err(problem) = receive(&file, tar).await {
            // Half an archive is of no use to anybody.
            let _ = tokio::fs::remove_file(&file).await;
            return Err(problem);
        }
        let resource = format!("images/{}", reference.as_deref().unwrap_or("imported"));
        let input = ImportInput { file, reference };
        self.launch(OperationKind::ImageImport, &input, resource)
            .await
    }

    pub(crate) async fn export(
        &self,
        text: &str,
        format: ExportFormat,
    ) -> Result<ByteStream, Problem> {
        let wanted = text.to_owned();
        let image = self
            .blocking_images(move |images| images.resolve(&wanted))
            .await?;
        let format = match format {
            ExportFormat::Oci | ExportFormat::Docker => image::ExportFormat::Archive,
            ExportFormat::RootFs => image::ExportFormat::RootFs,
        };
        let (sender, pieces) = mpsc::channel(IN_FLIGHT);
        let images = self.images().clone();
        tokio::task::spawn_blocking(move || {
            let mut output = io::BufWriter::with_capacity(256 << 10, Pieces(sender.clone()));
            let written = images.export(&[image], format, &mut output, &Job::silent());
            if let Err(error) = written {
                let problem = Problem::new(ErrorCode::Failed, chain(&error));
                // A reader that has gone needs no reason.
                let _ = sender.blocking_send(Err(problem));
            }
        });
        Ok(stream::unfold(pieces, |mut pieces| async move {
            pieces.recv().await.map(|piece| (piece, pieces))
        })
        .boxed())
    }

    async fn blocking_images<T: Send + 'static>(
        &self,
        work: impl FnOnce(&image::Store) -> Result<T, image::StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let images = self.images().clone();
        joined(tokio::task::spawn_blocking(move || work(&images)).await).map_err(from_images)
    }
}

fn shown(image: &image::Image, reference: String, instances: u64) -> Image {
    Image {
        reference,
        digest: image.id.to_string(),
        platform: image.platform.to_string(),
        size_bytes: image.unpacked_bytes,
        created_at: image.created.clone(),
        instances,
    }
}

/// The release of the host, when it is a Debian (os-release(5)).
fn host_suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID").as_deref(), value("VERSION_CODENAME")) {
        (Some("debian"), Some(codename)) => codename,
        _ => DEFAULT_SUITE.to_owned(),
    }
}

/// Writes what is uploaded to a file, durably: the operation reads it, maybe after a restart.
async fn receive(path: &PathBuf, mut tar: ByteStream) -> Result<(), Problem> {
    let failed = |error: io::Error| {
        Problem::new(
            ErrorCode::Failed,
            format!("the archive cannot be stored: {error}"),
        )
        .hint("free some space below the daemon's root")
    };
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    while let Some(piece) = tar.next().await {
        file.write_all(&piece?).await.map_err(failed)?;
    }
    file.sync_all().await.map_err(failed)
}

/// Writes to a channel.
struct Pieces(mpsc::Sender<Result<Bytes, Problem>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Ok(Bytes::copy_from_slice(bytes));
        self.0
            .blocking_send(piece)
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Control {
    /// Removes uploads of operations that are no more.
    pub(crate) async fn sweep_uploads(&self) -> Result<(), Problem> {
        let open = self.workflow().list(None).await.map_err(internal)?;
        let needed: Vec<PathBuf> = open
            .into_iter()
            .filter(|operation| !operation.state.is_final())
            .filter_map(|operation| serde_json::from_value::<ImportInput>(operation.input).ok())
            .map(|input| input.file)
            .collect();
        let uploads = self.node().parts().paths.uploads();
        for entry in std::fs::read_dir(uploads).into_iter().flatten().flatten() {
            if !needed.contains(&entry.path()) {
                // What cannot be removed now is tried again at the next start.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}
