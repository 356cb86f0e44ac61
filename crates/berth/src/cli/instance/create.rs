//! `run` and `launch`: from an image to a running instance.

use std::time::{Duration, Instant};

use api::{
    ErrorCode, ImagePull, InstanceCreate, InstanceDetail, InstanceSpec, Kind, WaitFor,
    client::{Client, Session},
    stream::Attach,
};
use clap::{Args, ValueEnum};

use super::{
    boot, foreground,
    past::{self, Past},
    spec::SpecArgs,
};
use crate::cli::{
    Context, complete,
    exit::{Exit, Failure, Outcome},
    human,
    progress::{self, OnInterrupt},
    session,
    term::{self, DetachKeys},
};

/// Seconds the daemon may take with a creation before we begin to show what it does.
const SILENT_S: u64 = 1;

/// Seconds the node may take to begin with an instance that is made.
const BEGIN_S: u64 = 60;

/// Seconds a launched instance may take to be ready unless said otherwise.
const READY_S: u64 = 120;

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Pull {
    /// When it is not here.
    #[default]
    Missing,
    /// Each time, so that the newest is used.
    Always,
    /// Not at all.
    Never,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Print its name and return; it goes on by itself
    #[arg(short, long, conflicts_with = "detach_keys")]
    detach: bool,
    /// Delete it when its program ends
    #[arg(long)]
    rm: bool,
    /// Send it our standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keys that leave it running and return
    #[arg(long, value_name = "KEYS", value_parser = term::detach_keys, default_value = "ctrl-p,ctrl-q")]
    detach_keys: DetachKeys,
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pull: Pull,
    /// The image, such as debian, nginx:1.27 or registry.example.org/team/web
    #[arg(add = complete::images())]
    image: String,
    /// The command, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    #[command(flatten)]
    spec: SpecArgs,
}

/// Flags of `launch`.
#[derive(Debug, Args)]
pub struct LaunchArgs {
    /// When to fetch the image
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pull: Pull,
    /// Seconds to wait until it is ready; 0 to return at once
    #[arg(long, value_name = "SECONDS", default_value_t = READY_S)]
    timeout: u64,
    /// The image, such as debian
    #[arg(add = complete::images())]
    image: String,
    #[command(flatten)]
    spec: SpecArgs,
}

impl RunArgs {
    /// Runs it; gives the exit code of its program.
    pub async fn run(self, cx: &Context) -> Outcome<u8> {
        let (name, pull) = (self.spec.name.clone(), self.pull);
        let mut spec = self
            .spec
            .into_spec(Kind::Application, self.image, self.command)?;
        spec.terminal = self.tty;
        spec.stdin = self.interactive;
        spec.remove_on_exit = self.rm;
        if self.tty && self.interactive && !self.detach && !cx.in_is_terminal {
            return Err(
                Failure::usage("-t lends the program your terminal, but stdin is not one")
                    .advise("leave out -t to pipe into it"),
            );
        }
        fetch(cx, pull, &spec.image).await?;
        if self.detach {
            let made = create(cx, name, "running", spec).await?;
            begins(&made)?;
            cx.print(&made.instance.name)?;
            return Ok(0);
        }
        let made = create(cx, name, "prepared", spec).await?;
        let name = made.instance.name.as_str();
        let session = match attach(&cx.client, &made, self.interactive).await {
            Ok(session) => session,
            Err(failure) => {
                // Nobody will ever start it: leave nothing behind.
                let _ = cx.client.delete_instance(name, true, None).await;
                return Err(failure);
            }
        };
        let options = session::Options {
            terminal: self.tty,
            stdin: self.interactive,
            detach_keys: &self.detach_keys,
        };
        let whose = foreground::Whose {
            id: &made.instance.id,
            name,
        };
        foreground::attend(cx, whose, session, &options).await
    }
}

async fn attach(client: &Client, made: &InstanceDetail, stdin: bool) -> Outcome<Session> {
    started(made)?;
    let attach = Attach {
        stdin,
        start: true,
        size: term::size(),
    };
    Ok(client.attach_instance(&made.instance.name, &attach).await?)
}

/// As [`started`], of what nobody attends.
fn begins(made: &InstanceDetail) -> Outcome {
    let name = &made.instance.name;
    started(made).map_err(|failure| {
        failure.advise(format!(
            "berth start {name} tries again; berth rm {name} removes it"
        ))
    })
}

/// Fails when what was made could not be set up or started; a program that has ended already could.
pub fn started(made: &InstanceDetail) -> Outcome {
    let instance = &made.instance;
    // A program that cannot be executed has the exit code that shells give it, and a message.
    let exit = match instance.exit.as_ref().map(|exit| exit.code) {
        None => Exit::Error,
        Some(126) => Exit::ProgramNotExecutable,
        Some(127) => Exit::ProgramNotFound,
        Some(_) => return Ok(()),
    };
    match &instance.message {
        // Already on its way out with --rm.
        Some(why) if ["stopped", "deleting"].contains(&instance.status.as_str()) => {
            let name = &instance.name;
            let what = format!("{name} could not be started: {}", human::clean(why));
            Err(Failure::said(exit, what))
        }
        _ => Ok(()),
    }
}

impl LaunchArgs {
    /// Launches it and waits until it is ready.
    pub async fn run(self, cx: &Context) -> Outcome {
        let begun = Instant::now();
        let name = self.spec.name.clone();
        let spec = self.spec.into_spec(Kind::System, self.image, Vec::new())?;
        let checked = spec.health.is_some();
        fetch(cx, self.pull, &spec.image).await?;
        let made = create(cx, name, "running", spec).await?;
        begins(&made)?;
        let name = made.instance.name.clone();
        let mark = cx.mark();
        cx.note(&format!("Here's what you get: {}", offer(&made)));
        cx.note(&format!(
            "{mark} image {}  {mark} created {name}",
            human::clean(&made.instance.image)
        ));
        if self.timeout > 0 {
            let until = if checked {
                WaitFor::Healthy
            } else {
                WaitFor::Running
            };
            let ready = cx.client.wait_instance(&name, until, self.timeout).await;
            let ready = ready.map_err(|error| not_ready(error.into(), &name))?;
            let deadline = begun + Duration::from_secs(self.timeout);
            if !checked && boot::wait(cx, &name, deadline).await?.as_deref() == Some("degraded") {
                cx.note(&format!(
                    "some of its services failed: berth exec {name} systemctl --failed"
                ));
            }
            let addresses = ready.instance.addresses.join(" ");
            cx.note(&format!(
                "{mark} ready in {:.1} s   {}",
                begun.elapsed().as_secs_f64(),
                human::clean(&addresses)
            ));
        }
        if cx.quiet || !cx.out_is_terminal {
            cx.print(&name)?;
        }
        cx.note(&format!(
            "Next: berth shell {name} · berth logs -f {name} · berth show {name}"
        ));
        Ok(())
    }
}

fn not_ready(failure: Failure, name: &str) -> Failure {
    let timeout = failure.is_timeout();
    let advised = failure.advise(format!(
        "see what it says: berth logs {name}; and berth show {name}"
    ));
    if timeout {
        return Failure::said(
            Exit::Timeout,
            format!("{name} was created, but was not ready in time"),
        )
        .advise(advised.hint().unwrap_or_default());
    }
    advised
}

/// The offer in a few words: kind and limits.
fn offer(made: &InstanceDetail) -> String {
    let spec = &made.spec;
    let mut words = vec![describe(spec.kind, spec.machine.is_some()).to_owned()];
    words.extend(spec.cpus.map(|cpus| format!("{cpus} CPUs")));
    words.extend(spec.memory.as_ref().map(|size| format!("{size} memory")));
    words.extend(spec.root_size.as_ref().map(|size| format!("{size} disk")));
    if words.len() == 1 {
        words.push("all CPUs and memory of this host".into());
    }
    format!("{}. More: --cpus --memory --root-size", words.join(", "))
}

/// What an instance is, in words.
const fn describe(kind: Kind, machine: bool) -> &'static str {
    match (machine, kind) {
        (true, _) => "virtual machine",
        (false, Kind::System) => "system container",
        (false, Kind::Application) => "container",
    }
}

/// Does what `--pull` asks for before a creation.
async fn fetch(cx: &Context, pull: Pull, image: &str) -> Outcome {
    match pull {
        // Part of the creation itself.
        Pull::Missing => Ok(()),
        Pull::Always => {
            let request = ImagePull {
                reference: image.to_owned(),
                ..ImagePull::default()
            };
            let operation = cx.client.pull_image(&request).await?;
            progress::follow(cx, &operation.id, OnInterrupt::Cancel).await?;
            Ok(())
        }
        Pull::Never => match cx.client.show_image(image).await.map_err(Failure::from) {
            Ok(_) => Ok(()),
            Err(failure) if failure.is_not_found() => Err(Failure::said(
                Exit::NotFound,
                format!("the image {image:?} is not here, and --pull never forbids to fetch it"),
            )
            .advise(format!(
                "berth image pull {image}, or leave out --pull never"
            ))),
            Err(failure) => Err(failure),
        },
    }
}

/// Creates an instance and waits until it is made, showing what takes long.
async fn create(
    cx: &Context,
    name: Option<String>,
    desired: &str,
    spec: InstanceSpec,
) -> Outcome<InstanceDetail> {
    let create = InstanceCreate {
        name,
        desired: Some(desired.to_owned()),
        spec,
    };
    let mut made = cx.client.create_instance(&create, Some(SILENT_S)).await?;
    for note in &made.notes {
        cx.note(&human::clean(note));
    }
    if made.instance.status == "creating" {
        let resource = format!("instances/{}", made.instance.name);
        let mine = cx.client.list_operations().await?;
        let mine = mine.into_iter().find(|operation| {
            operation.resource == resource && operation.kind == "instance_create"
        });
        if let Some(operation) = mine {
            progress::follow(cx, &operation.id, OnInterrupt::Cancel)
                .await
                .map_err(|failure| without_registry(failure, &create.spec.image))?;
        }
    }
    if !has_begun(&made) {
        made = begun(cx, made).await?;
    }
    if made.instance.status == "failed" {
        let why = made
            .instance
            .message
            .unwrap_or_else(|| "no reason was given".into());
        let name = made.instance.name;
        return Err(
            Failure::error(format!("{name} could not be made: {}", human::clean(&why))).advise(
                format!("berth show {name} says more; berth rm {name} removes it"),
            ),
        );
    }
    Ok(made)
}

/// An instance that is made, once the node has begun with it: an operation ends before that.
async fn begun(cx: &Context, made: InstanceDetail) -> Outcome<InstanceDetail> {
    // By id: another may have the name by now.
    let id = &made.instance.id;
    let settled = cx.client.wait_instance(id, WaitFor::Settled, BEGIN_S).await;
    let missing = match settled {
        Ok(settled) if has_begun(&settled) => return Ok(settled),
        Ok(_) => None,
        Err(error) => match error.code() {
            Some(ErrorCode::Timeout) => return Ok(cx.client.show_instance(id).await?),
            Some(ErrorCode::NotFound) => Some(error),
            _ => return Err(error.into()),
        },
    };
    // It went away with its program, before we saw how that ended.
    match (past::of(&cx.client, id).await?, missing) {
        (Some(Past::NotStarted { code, message }), _) => {
            let exit = code.and_then(|code| u8::try_from(code).ok());
            let exit = exit.map_or(Exit::Error, Exit::from);
            Err(Failure::said(exit, human::clean(&message)))
        }
        (None, Some(error)) => Err(error.into()),
        _ => Ok(made),
    }
}

fn has_begun(made: &InstanceDetail) -> bool {
    let instance = &made.instance;
    let waits = ["creating", "stopped"].contains(&instance.status.as_str());
    !waits || instance.exit.is_some() || instance.message.is_some()
}

/// Two images need no registry; whoever cannot reach one is told.
fn without_registry(failure: Failure, image: &str) -> Failure {
    let bare = image.split([':', '@']).next().unwrap_or_default();
    match bare {
        "debian" | "busybox" if failure.hint().is_none() => failure.advise(format!(
            "if no registry can be reached, make the image here: berth image build --recipe {bare}"
        )),
        _ => failure,
    }
}
