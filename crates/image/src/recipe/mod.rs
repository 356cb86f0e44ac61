//! Recipes: images Berth makes by itself, so that it works without any registry.
//!
//! A recipe and its inputs (the busybox binary; mmdebstrap and the apt sources) hash to a key; the same
//! key finds the earlier result unless a fresh build is asked for. Tools run as children of the caller's
//! thread. Knows nothing of instances.

mod busybox;
mod debian;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::debian::DebianRecipe;
use crate::{
    assemble::{Part, assemble, rfc3339},
    digest::Digest,
    error::StoreError,
    job::{Cancelled, Event, Job, Phase},
    layer::{Ingested, LayerError},
    manifest::{History, ImageConfig, RunConfig},
    platform::Platform,
    reference::Reference,
    store::{FORMAT, Store, read_json, write_json},
};

/// The search path of images made here.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image Berth can make by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recipe {
    /// Debian's static busybox with all its applets: 2 MB, made in milliseconds.
    Busybox,
    /// A Debian root file system by mmdebstrap.
    Debian(DebianRecipe),
}

/// A finished build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The image.
    pub image: Digest,
    /// An earlier build of the same recipe and inputs was found.
    pub cached: bool,
}

/// A recipe failed; the store is as before.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// A program the recipe needs is not installed.
    #[error(
        "the recipe needs {program}, which is not installed; on Debian and Ubuntu: apt-get install {package}"
    )]
    MissingTool {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// A recipe's parameter is not acceptable.
    #[error("{what} {value:?} is not valid: {reason}")]
    Parameter {
        /// Which parameter.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// The busybox binary needs libraries that the image would not have.
    #[error("{0} is not statically linked; apt-get install busybox-static")]
    NotStatic(PathBuf),
    /// A tool ran and failed.
    #[error("{program} failed ({status}): {output}")]
    Tool {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A tool could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Making the layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled by the caller.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A recipe's earlier result, under the key of its inputs.
#[derive(Serialize, Deserialize)]
pub(crate) struct CachedResult {
    pub version: u32,
    pub image: Digest,
}

impl Recipe {
    /// The name a build gets when the user gives none: `busybox:latest`, `debian:<suite>`, and for
    /// system containers `debian:<suite>-systemd`, for virtual machines `debian:<suite>-vm`.
    ///
    /// # Errors
    /// When the suite cannot be a tag.
    pub fn default_name(&self) -> Result<Reference, RecipeError> {
        let (name, tag) = match self {
            Self::Busybox => ("busybox", "latest".to_owned()),
            Self::Debian(recipe) if recipe.machine => ("debian", format!("{}-vm", recipe.suite)),
            Self::Debian(recipe) if recipe.systemd => {
                ("debian", format!("{}-systemd", recipe.suite))
            }
            Self::Debian(recipe) => ("debian", recipe.suite.clone()),
        };
        Reference::local(name, &tag).map_err(|_| RecipeError::Parameter {
            what: "suite",
            value: tag,
            reason: "it cannot be part of an image name",
        })
    }
}

impl Store {
    /// Builds a recipe and names the result, or names the earlier result of the same recipe and inputs
    /// unless `fresh`. Blocks: milliseconds for busybox, about half a minute and a network for Debian.
    ///
    /// # Errors
    /// [`RecipeError`].
    pub fn build_recipe(
        &self,
        recipe: &Recipe,
        name: &Reference,
        fresh: bool,
        job: &Job,
    ) -> Result<Built, RecipeError> {
        let prepared = match recipe {
            Recipe::Busybox => Prepared::Busybox(busybox::prepare()?),
            Recipe::Debian(recipe) => Prepared::Debian(debian::prepare(recipe)?),
        };
        let lease = self.lease()?;
        let cache = self
            .root()
            .join("recipes")
            .join(format!("{}.json", prepared.key().hex()));
        if !fresh
            && let Some(found) = read_json::<CachedResult>(&cache)?
            && lease
                .pin(&[found.image], |store| store.image_record(&found.image))?
                .is_some()
        {
            self.tag(&found.image, name)?;
            return Ok(Built {
                image: found.image,
                cached: true,
            });
        }
        job.emit(Event::Phase(Phase::Building));
        let layer = match &prepared {
            Prepared::Busybox(inputs) => inputs.build(self, &lease, job)?,
            Prepared::Debian(inputs) => inputs.build(self, &lease, job)?,
        };
        job.emit(Event::Phase(Phase::Recording));
        lease.pin(&[layer.blob, layer.diff_id], |_| Ok(()))?;
        let config = prepared.config(&layer);
        let names = std::slice::from_ref(name);
        let image = assemble(self, &lease, &[Part::new(&layer)], config, names)?;
        write_json(
            &cache,
            &CachedResult {
                version: FORMAT,
                image,
            },
        )?;
        Ok(Built {
            image,
            cached: false,
        })
    }
}

/// A recipe with its inputs found and checked.
enum Prepared {
    Busybox(busybox::Inputs),
    Debian(debian::Inputs),
}

impl Prepared {
    fn key(&self) -> Digest {
        match self {
            Self::Busybox(inputs) => inputs.key(),
            Self::Debian(inputs) => inputs.key(),
        }
    }

    fn config(&self, _layer: &Ingested) -> ImageConfig {
        let (run, created_by, created) = match self {
            Self::Busybox(_) => (
                busybox::run_config(),
                "berth image build --recipe busybox".to_owned(),
                0,
            ),
            Self::Debian(inputs) => (inputs.run_config(), inputs.created_by(), inputs.epoch()),
        };
        let platform = Platform::host();
        let created = Some(rfc3339(created));
        ImageConfig {
            created: created.clone(),
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
            config: run,
            history: vec![History {
                created,
                created_by: Some(created_by),
                ..History::default()
            }],
            ..ImageConfig::default()
        }
    }
}

/// What both recipes agree on.
fn base_config(cmd: &[&str]) -> RunConfig {
    RunConfig {
        env: vec![PATH.to_owned()],
        cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
        ..RunConfig::default()
    }
}
