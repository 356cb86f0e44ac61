//! `berth image …`

use std::path::PathBuf;

use api::{
    Image, ImageBuild, ImageDetail, ImageDfRow, ImagePull, ImagePush, ImageTag, Operation, Recipe,
    RegistryAuth, client::ExportFormat,
};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Context, complete,
    exit::{Failure, Outcome},
    human,
    output::{self, Column, ListArgs, Row, ShowArgs, column, wide},
    progress::{self, OnInterrupt},
    suggest::{Noun, on_missing},
    table::Cell,
};

/// The verbs of images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one image
    Show(NamedArgs),
    /// Fetch an image from a registry
    Pull(PullArgs),
    /// Send an image to a registry
    Push(PushArgs),
    /// Make an image from a built-in recipe, with no registry
    Build(BuildArgs),
    /// Make an image of an archive (docker save, an OCI layout, a root file system as tar), or of a
    /// virtual machine's disk (raw, qcow2)
    Import(ImportArgs),
    /// Write an image as an archive
    Export(ExportArgs),
    /// Give an image another name
    Tag {
        /// The image
        #[arg(add = complete::images())]
        image: String,
        /// Its new name
        reference: String,
    },
    /// Delete names of images, and an image with its last name
    Rm {
        /// The images
        #[arg(required = true, value_name = "IMAGE", add = complete::images())]
        images: Vec<String>,
    },
    /// Show what images take on disk, and what they share
    Df(ListArgs),
    /// Remove layers that nothing uses
    Gc,
}

/// One image.
#[derive(Debug, Args)]
pub struct NamedArgs {
    #[command(flatten)]
    show: ShowArgs,
    /// The image, by name or digest
    #[arg(add = complete::images())]
    image: String,
}

/// Who asks a registry.
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// User name for the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password for the registry from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

impl RegistryArgs {
    fn auth(self) -> Outcome<Option<RegistryAuth>> {
        let Some(username) = self.username else {
            return Ok(None);
        };
        let password = password_from_stdin()?;
        Ok(Some(RegistryAuth { username, password }))
    }
}

/// The first line of stdin.
pub fn password_from_stdin() -> Outcome<String> {
    let mut password = String::new();
    std::io::stdin().read_line(&mut password)?;
    Ok(password.trim_end_matches(['\r', '\n']).to_owned())
}

/// Flags of `image pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Platform, such as linux/arm64; this host's when not given
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image
    reference: String,
}

/// Flags of `image push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    #[command(flatten)]
    registry: RegistryArgs,
    /// The image
    #[arg(add = complete::images())]
    image: String,
    /// Where to; its own name when not given
    reference: Option<String>,
}

/// A recipe.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RecipeName {
    /// A static busybox
    Busybox,
    /// Debian, by mmdebstrap
    Debian,
}

/// Flags of `image build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The recipe
    #[arg(long, value_enum)]
    recipe: RecipeName,
    /// Name of the image; the recipe's own when not given
    #[arg(long)]
    name: Option<String>,
    /// Debian: the release, such as bookworm
    #[arg(long)]
    suite: Option<String>,
    /// Debian: a package besides the base system
    #[arg(long = "package", value_name = "NAME", value_delimiter = ',')]
    packages: Vec<String>,
    /// Debian: put an init inside, for `berth launch`
    #[arg(long)]
    system: bool,
    /// For `berth launch --vm`: an init that finds its devices; kernel, agent and disk made at once
    #[arg(long)]
    vm: bool,
    /// Make it anew even when it is there
    #[arg(long)]
    fresh: bool,
}

/// Flags of `image import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The archive or disk, or - for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    file: PathBuf,
    /// Name of the image; those in the archive when not given
    reference: Option<String>,
}

/// Form of an archive.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ArchiveFormat {
    /// OCI image layout
    #[default]
    Oci,
    /// What docker save writes
    Docker,
    /// The root file system alone
    Rootfs,
}

/// Flags of `image export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Form of the archive
    #[arg(long, value_enum, default_value_t)]
    format: ArchiveFormat,
    /// The file; stdout when not given
    #[arg(short = 'f', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// The image
    #[arg(add = complete::images())]
    image: String,
}

fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

impl Row for Image {
    const COLUMNS: &'static [Column<Self>] = &[
        column("IMAGE", |i, _| Cell::from(&i.reference)),
        column("DIGEST", |i, _| Cell::from(short(&i.digest))),
        column("PLATFORM", |i, _| Cell::from(&i.platform)),
        column("SIZE", |i, _| Cell::from(human::bytes(i.size_bytes))),
        column("MADE", |i, now| {
            Cell::from(
                i.created_at
                    .as_ref()
                    .map(|at| human::age(at, now))
                    .unwrap_or_default(),
            )
        }),
        column("USED BY", |i, _| Cell::from(i.instances.to_string())),
        wide("FULL DIGEST", |i, _| Cell::from(&i.digest)),
    ];
    const TOPIC: &'static str = "image.";

    fn name(&self) -> &str {
        if self.reference.is_empty() {
            &self.digest
        } else {
            &self.reference
        }
    }
}

impl Row for ImageDfRow {
    const COLUMNS: &'static [Column<Self>] = &[
        column("IMAGE", |i, _| Cell::from(&i.reference)),
        column("SIZE", |i, _| Cell::from(human::bytes(i.size_bytes))),
        column("SHARED", |i, _| Cell::from(human::bytes(i.shared_bytes))),
        column("ITS OWN", |i, _| Cell::from(human::bytes(i.unique_bytes))),
        wide("DIGEST", |i, _| Cell::from(&i.digest)),
    ];
    const TOPIC: &'static str = "image.";

    fn name(&self) -> &str {
        if self.reference.is_empty() {
            &self.digest
        } else {
            &self.reference
        }
    }
}

impl ImageCommand {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        match self {
            Self::List(args) => {
                output::list(cx, &args, async || Ok(cx.client.list_images().await?)).await
            }
            Self::Show(args) => {
                let detail = cx.client.show_image(&args.image).await;
                let detail = missing(cx, &args.image, detail).await?;
                output::one(cx, args.show, detail.image.name(), &detail, describe)
            }
            Self::Pull(args) => {
                let request = ImagePull {
                    reference: args.reference,
                    platform: args.platform,
                    auth: args.registry.auth()?,
                };
                let operation = cx.client.pull_image(&request).await?;
                done(cx, operation, &request.reference).await
            }
            Self::Push(args) => {
                let request = ImagePush {
                    image: args.image,
                    reference: args.reference,
                    auth: args.registry.auth()?,
                };
                let operation = cx.client.push_image(&request).await;
                let operation = missing(cx, &request.image, operation).await?;
                let pushed = request.reference.as_ref().unwrap_or(&request.image);
                done(cx, operation, pushed).await
            }
            Self::Build(args) => build(cx, args).await,
            Self::Import(args) => import(cx, args).await,
            Self::Export(args) => export(cx, args).await,
            Self::Tag { image, reference } => {
                let request = ImageTag { image, reference };
                let tagged = cx.client.tag_image(&request).await;
                let tagged = missing(cx, &request.image, tagged).await?;
                cx.print(tagged.name())
            }
            Self::Rm { images } => {
                for image in images {
                    let deleted = cx.client.delete_image(&image).await;
                    missing(cx, &image, deleted).await?;
                    cx.print(&image)?;
                }
                Ok(())
            }
            Self::Df(args) => df(cx, &args).await,
            Self::Gc => {
                let gone = cx.client.gc_images().await?;
                cx.print(&format!(
                    "{} freed, {} blobs and layers removed",
                    human::bytes(gone.freed_bytes),
                    gone.removed
                ))
            }
        }
    }
}

async fn missing<T>(cx: &Context, image: &str, result: api::client::Result<T>) -> Outcome<T> {
    match result {
        Ok(found) => Ok(found),
        Err(error) => Err(on_missing(cx, Noun::Image, image, error.into()).await),
    }
}

/// Watches an operation and prints the name of what it made: as it was asked for, else as the
/// daemon calls it.
async fn done(cx: &Context, operation: Operation, asked: &str) -> Outcome {
    let ended = progress::follow(cx, &operation.id, OnInterrupt::Leave).await?;
    if !asked.is_empty() {
        return cx.print(asked);
    }
    match ended.result {
        Some(serde_json::Value::String(made)) => cx.print(&human::clean(&made)),
        Some(serde_json::Value::Array(list)) => {
            for made in list.iter().filter_map(serde_json::Value::as_str) {
                cx.print(&human::clean(made))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn build(cx: &Context, args: BuildArgs) -> Outcome {
    let request = ImageBuild {
        recipe: match args.recipe {
            RecipeName::Busybox => Recipe::Busybox,
            RecipeName::Debian => Recipe::Debian,
        },
        name: args.name,
        suite: args.suite,
        packages: args.packages,
        system: args.system,
        vm: args.vm,
        fresh: args.fresh,
    };
    let operation = cx.client.build_image(&request).await?;
    // The daemon names what was given no name, after the release it makes.
    let made = operation.resource.strip_prefix("images/");
    let asked = human::clean(made.unwrap_or_default());
    done(cx, operation, &asked).await
}

async fn import(cx: &Context, args: ImportArgs) -> Outcome {
    let reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = if args.file.as_os_str() == "-" {
        Box::new(tokio::io::stdin())
    } else {
        let file = tokio::fs::File::open(&args.file).await.map_err(|error| {
            Failure::error(format!("{} cannot be read: {error}", args.file.display()))
        })?;
        Box::new(file)
    };
    let parts = futures::stream::try_unfold(reader, async |mut reader| {
        let mut part = bytes::BytesMut::with_capacity(256 << 10);
        let count = reader.read_buf(&mut part).await?;
        Ok((count > 0).then(|| (part.freeze(), reader)))
    });
    let operation = cx
        .client
        .import_image(args.reference.as_deref(), parts)
        .await?;
    let asked = args.reference.unwrap_or_default();
    done(cx, operation, &asked).await
}

async fn export(cx: &Context, args: ExportArgs) -> Outcome {
    if args.file.is_none() && cx.out_is_terminal {
        return Err(
            Failure::usage("an archive would spoil the terminal").advise(format!(
                "name a file: berth image export -f image.tar {}",
                args.image
            )),
        );
    }
    let format = match args.format {
        ArchiveFormat::Oci => ExportFormat::Oci,
        ArchiveFormat::Docker => ExportFormat::Docker,
        ArchiveFormat::Rootfs => ExportFormat::Rootfs,
    };
    let exported = cx.client.export_image(&args.image, format).await;
    let mut bytes = missing(cx, &args.image, exported).await?;
    let Some(path) = args.file else {
        bytes.copy_to(&mut tokio::io::stdout()).await?;
        return Ok(());
    };
    // Whole or not at all: written beside the target, then named.
    let directory = path
        .parent()
        .filter(|parent| *parent != std::path::Path::new(""));
    let file = tempfile::NamedTempFile::new_in(directory.unwrap_or(std::path::Path::new(".")))?;
    let mut writer = tokio::fs::File::from_std(file.reopen()?);
    bytes.copy_to(&mut writer).await?;
    writer.flush().await?;
    writer.sync_all().await?;
    file.persist(&path).map_err(|error| {
        Failure::error(format!(
            "{} cannot be written: {}",
            path.display(),
            error.error
        ))
    })?;
    Ok(())
}

async fn df(cx: &Context, args: &ListArgs) -> Outcome {
    let df = cx.client.image_df().await?;
    if matches!(
        args.show.output,
        output::Format::Json | output::Format::Yaml
    ) {
        return output::one(cx, args.show, "", &df, |_| Vec::new());
    }
    let rows = super::filter::apply(df.images, &args.filter)?;
    output::rows(cx, args, &rows, true)?;
    if cx.quiet || args.show.output == output::Format::Name {
        return Ok(());
    }
    cx.print(&format!(
        "\n{} on disk; {} if nothing were shared; {} can be freed with `berth image gc`",
        human::bytes(df.total_bytes),
        human::bytes(df.apparent_bytes),
        human::bytes(df.reclaimable_bytes)
    ))
}

fn describe(detail: &ImageDetail) -> Vec<(&'static str, String)> {
    let image = &detail.image;
    let layers: Vec<_> = detail
        .layers
        .iter()
        .map(|layer| {
            format!(
                "{} {}",
                short(&layer.digest),
                human::bytes(layer.size_bytes)
            )
        })
        .collect();
    let labels: Vec<_> = detail
        .labels
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    vec![
        ("Image", image.reference.clone()),
        ("Digest", image.digest.clone()),
        ("Platform", image.platform.clone()),
        ("Size", human::bytes(image.size_bytes)),
        ("Made", image.created_at.clone().unwrap_or_default()),
        ("Used by", format!("{} instances", image.instances)),
        ("Entrypoint", human::command(&detail.entrypoint)),
        ("Command", human::command(&detail.command)),
        ("Environment", detail.env.join("\n")),
        ("User", detail.user.clone().unwrap_or_default()),
        ("Directory", detail.workdir.clone().unwrap_or_default()),
        ("Labels", labels.join("\n")),
        ("Layers", layers.join("\n")),
    ]
}
