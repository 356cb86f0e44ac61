//! Operations on images. The image store itself does each completely or not at all, so every one
//! is a single step with nothing to undo.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use image::{Digest, Job, Reference};
use node::Node;
use serde::{Deserialize, Serialize};
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;
use workflow::{Context, Progress, Step, StepError};

use super::Passwords;
use crate::error::joined;

/// How often progress is handed on.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Input of a pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PullInput {
    pub(crate) reference: String,
    pub(crate) platform: Option<String>,
    pub(crate) password: Option<u64>,
}

/// Input of a push.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PushInput {
    pub(crate) image: String,
    pub(crate) reference: String,
    pub(crate) password: Option<u64>,
}

/// Input of an import.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImportInput {
    pub(crate) file: PathBuf,
    pub(crate) reference: Option<String>,
}

/// Input of a build.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BuildInput {
    pub(crate) recipe: image::Recipe,
    pub(crate) name: String,
    pub(crate) fresh: bool,
    /// Whether kernel and disk of a virtual machine are made at once.
    #[serde(default)]
    pub(crate) vm: bool,
}

/// What steps on images work with.
#[derive(Clone)]
pub(crate) struct Transfer {
    pub(super) node: Node,
    pub(super) registries: Arc<Registries>,
    pub(super) passwords: Passwords,
    /// Written by a garbage collection, read by whoever begins to use an image.
    pub(super) collection: Arc<RwLock<()>>,
}

/// Clients for registries: one for all who bring no password, made at first use since reading the
/// host's certificates takes a while.
pub(crate) struct Registries {
    config: image::RegistryConfig,
    shared: OnceLock<image::Registries>,
}

impl Registries {
    pub(crate) fn new(config: image::RegistryConfig) -> Self {
        Self {
            config,
            shared: OnceLock::new(),
        }
    }

    pub(crate) fn client(&self) -> Result<image::Registries, image::RegistryError> {
        if let Some(client) = self.shared.get() {
            return Ok(client.clone());
        }
        let made = image::Registries::new(self.config.clone())?;
        Ok(self.shared.get_or_init(|| made).clone())
    }

    fn client_as(
        &self,
        registry: &str,
        auth: api::RegistryAuth,
    ) -> Result<image::Registries, image::RegistryError> {
        let mut config = self.config.clone();
        let credential = image::Credential::Basic {
            username: auth.username,
            password: auth.password,
        };
        config.credentials = config.credentials.with(registry, credential);
        image::Registries::new(config)
    }
}

/// Fetches an image from a registry.
pub(super) struct Pull(pub(super) Transfer);

impl Step for Pull {
    fn name(&self) -> &'static str {
        "pull"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: PullInput = ctx.input()?;
        let platform = input.platform.as_deref();
        let pulled = self
            .0
            .pull(ctx, &input.reference, platform, input.password)
            .await;
        self.0.passwords.forget(input.password);
        ctx.set_result(&pulled?.to_string())
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

/// Sends an image to a registry.
pub(super) struct Push(pub(super) Transfer);

impl Step for Push {
    fn name(&self) -> &'static str {
        "push"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: PushInput = ctx.input()?;
        let images = self.0.images();
        let image = images
            .resolve(&input.image)
            .map_err(|error| StepError::because(&error))?;
        let reference = reference(&input.reference)?;
        let registries = self.0.registries(&reference, input.password)?;
        let (job, news) = job();
        let options = image::PushOptions::default();
        let push = images.push(&registries, &image, &reference, &options, &job);
        let pushed = news.follow(ctx, push, &job).await;
        self.0.passwords.forget(input.password);
        match pushed {
            Err(image::PushError::Cancelled(_)) => Err(StepError::Cancelled),
            Err(error) => Err(StepError::because(&error)),
            Ok(pushed) => ctx.set_result(&pushed.digest.to_string()),
        }
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

/// Makes an image of an archive.
pub(super) struct Import(pub(super) Transfer);

impl Step for Import {
    fn name(&self) -> &'static str {
        "import"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: ImportInput = ctx.input()?;
        let name = input
            .reference
            .as_deref()
            .map(local_reference)
            .transpose()?;
        let (job, news) = job();
        let (images, inner, file) = (self.0.images().clone(), job.clone(), input.file.clone());
        let work = tokio::task::spawn_blocking(move || import(&images, &file, name, &inner));
        let imported = joined(news.follow(ctx, work, &job).await);
        if !matches!(imported, Err(StepError::Retryable { .. })) {
            // Read once, whatever came of it. One that is gone already is as good.
            let _ = std::fs::remove_file(&input.file);
        }
        let digests: Vec<String> = imported?.iter().map(ToString::to_string).collect();
        ctx.set_result(&digests)
    }

    async fn undo(&self, ctx: &Context) -> Result<(), StepError> {
        let input: ImportInput = ctx.input()?;
        let _ = std::fs::remove_file(&input.file);
        Ok(())
    }
}

/// A machine's disk, an archive with images in it, or else a root file system that then needs a name.
fn import(
    images: &image::Store,
    path: &PathBuf,
    name: Option<Reference>,
    job: &Job,
) -> Result<Vec<Digest>, StepError> {
    let open = || {
        File::open(path).map_err(|error| {
            StepError::permanent(format!("the uploaded archive cannot be read: {error}"))
        })
    };
    let options = image::ImportOptions {
        name: name.clone(),
        ..image::ImportOptions::default()
    };
    let disk = images.import_disk(&open()?, &options, job);
    if !matches!(disk, Err(image::ImportError::NoImage(_))) {
        if name.is_none() {
            let text = "a disk says no name for its image; give it one";
            return Err(StepError::permanent(text));
        }
        return imported(disk.map(|digest| vec![digest]));
    }
    let archive = match images.import_archive(open()?, &options, job) {
        Err(image::ImportError::NoImage(_)) if name.is_some() => images
            .import_rootfs(open()?, &options, job)
            .map(|digest| vec![digest]),
        Err(image::ImportError::NoImage(reason)) => {
            return Err(StepError::permanent(format!(
                "the archive holds no image ({reason}); if it is a root file system, give it a name"
            )));
        }
        done => done,
    };
    imported(archive)
}

fn imported(result: Result<Vec<Digest>, image::ImportError>) -> Result<Vec<Digest>, StepError> {
    result.map_err(|error| match error {
        image::ImportError::Cancelled(_) => StepError::Cancelled,
        error => StepError::because(&error),
    })
}

/// Makes an image from a built-in recipe.
pub(super) struct Build(pub(super) Transfer);

impl Step for Build {
    fn name(&self) -> &'static str {
        "build"
    }

    async fn run(&self, ctx: &Context) -> Result<(), StepError> {
        let input: BuildInput = ctx.input()?;
        let name = local_reference(&input.name)?;
        let (job, news) = job();
        let (images, inner) = (self.0.images().clone(), job.clone());
        let vm = input.vm;
        let work = tokio::task::spawn_blocking(move || {
            images.build_recipe(&input.recipe, &name, input.fresh, &inner)
        });
        let built = match joined(news.follow(ctx, work, &job).await) {
            Err(image::RecipeError::Cancelled(_)) => return Err(StepError::Cancelled),
            Err(error) => return Err(StepError::because(&error)),
            Ok(built) => built,
        };
        if vm {
            let making = self.0.node.prepare_machine(built.image, job.clone());
            match news.follow(ctx, making, &job).await {
                Ok(()) => {}
                Err(_) if job.cancel_token().is_cancelled() => return Err(StepError::Cancelled),
                Err(error) => return Err(StepError::because(&error)),
            }
        }
        ctx.set_result(&built.image.to_string())
    }

    async fn undo(&self, _ctx: &Context) -> Result<(), StepError> {
        Ok(())
    }
}

impl Transfer {
    fn images(&self) -> &image::Store {
        &self.node.parts().images
    }

    /// Fetches an image; also the way an instance gets an image that is not here.
    pub(super) async fn pull(
        &self,
        ctx: &Context,
        text: &str,
        platform: Option<&str>,
        password: Option<u64>,
    ) -> Result<Digest, StepError> {
        let reference = reference(text)?;
        let platform = platform.map(str::parse).transpose();
        let platform =
            platform.map_err(|error: image::PlatformError| StepError::because(&error))?;
        let registries = self.registries(&reference, password)?;
        let options = image::PullOptions {
            platform,
            ..image::PullOptions::default()
        };
        let (job, news) = job();
        let pull = self.images().pull(&registries, &reference, &options, &job);
        match news.follow(ctx, pull, &job).await {
            Err(image::PullError::Cancelled(_)) => Err(StepError::Cancelled),
            Err(error) => Err(StepError::because(&error)),
            Ok(pulled) => Ok(pulled.image),
        }
    }

    /// A client for registries, with the caller's own password if one was given.
    fn registries(
        &self,
        reference: &Reference,
        password: Option<u64>,
    ) -> Result<image::Registries, StepError> {
        let client = match self.passwords.get(password) {
            Some(auth) => self.registries.client_as(reference.registry(), auth),
            None => self.registries.client(),
        };
        client.map_err(|error| StepError::because(&error))
    }
}

/// What to pull for a text: the registry's image, never one of this host.
pub(crate) fn reference(text: &str) -> Result<Reference, StepError> {
    let candidates = Reference::candidates(text).map_err(|error| StepError::because(&error))?;
    candidates
        .last()
        .cloned()
        .ok_or_else(|| StepError::permanent("name an image"))
}

/// What to call an image made here: one of this host unless a registry is named.
pub(crate) fn local_reference(text: &str) -> Result<Reference, StepError> {
    let candidates = Reference::candidates(text).map_err(|error| StepError::because(&error))?;
    candidates
        .first()
        .cloned()
        .ok_or_else(|| StepError::permanent("name the image"))
}

/// The news of a job, gathered for the operation's progress.
#[derive(Clone, Default)]
pub(super) struct News {
    latest: Arc<Mutex<Latest>>,
}

#[derive(Default)]
struct Latest {
    message: String,
    layers: HashMap<Digest, (u64, u64)>,
}

pub(super) fn job() -> (Job, News) {
    let news = News::default();
    let sink = news.clone();
    (
        Job::new(move |event| sink.hear(event), CancellationToken::new()),
        news,
    )
}

impl News {
    fn hear(&self, event: image::Event) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            image::Event::Phase(phase) => {
                latest.message = match phase {
                    image::Phase::Resolving => "asking the registry",
                    image::Phase::Transferring => "transferring layers",
                    image::Phase::Building => "building",
                    image::Phase::Recording => "recording",
                }
                .to_owned();
            }
            image::Event::Layer {
                layer,
                done_bytes,
                total_bytes,
                ..
            } => {
                latest.layers.insert(layer, (done_bytes, total_bytes));
            }
            image::Event::Note(line) => latest.message = line,
        }
    }

    fn progress(&self) -> Progress {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |part: fn(&(u64, u64)) -> u64| latest.layers.values().map(part).sum();
        let total = sum(|(_, total)| *total);
        Progress {
            message: latest.message.clone(),
            done: sum(|(done, _)| *done),
            total,
            unit: if total > 0 {
                "bytes".to_owned()
            } else {
                String::new()
            },
        }
    }

    /// Does the work, handing progress on and heeding a cancel.
    pub(super) async fn follow<T>(
        &self,
        ctx: &Context,
        work: impl Future<Output = T>,
        job: &Job,
    ) -> T {
        let mut work = std::pin::pin!(work);
        let mut ticks = tokio::time::interval(PROGRESS_EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = ctx.cancelled(), if !job.cancel_token().is_cancelled() => {
                    job.cancel_token().cancel();
                }
                _ = ticks.tick() => ctx.progress(self.progress()),
            }
        }
    }
}
