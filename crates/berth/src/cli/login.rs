//! `berth login` and `berth logout`: who the daemon is to registries.

use api::{Login, LoginCreate};
use clap::Args;

use super::{
    Context,
    exit::{Failure, Outcome},
    image::password_from_stdin,
    output::{self, Column, ListArgs, Row, column},
    table::Cell,
    term,
};

/// Flags of `login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// User name; asked for on a terminal when not given
    #[arg(short, long, value_name = "NAME", requires = "registry")]
    username: Option<String>,
    /// Read the password from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    list: ListArgs,
    /// Where: host or host:port, docker.io for Docker Hub; lists logins when not given
    registry: Option<String>,
}

impl Row for Login {
    const COLUMNS: &'static [Column<Self>] = &[
        column("REGISTRY", |login, _| Cell::from(&login.registry)),
        column("USER", |login, _| {
            Cell::from(login.username.as_deref().unwrap_or("by a token"))
        }),
    ];
    const TOPIC: &'static str = "login.";

    fn name(&self) -> &str {
        &self.registry
    }
}

impl LoginArgs {
    /// Does it.
    pub async fn run(self, cx: &Context) -> Outcome {
        let Some(registry) = self.registry else {
            let logins = async || Ok(cx.client.list_logins().await?);
            return output::list(cx, &self.list, logins).await;
        };
        if !self.password_stdin && !cx.in_is_terminal {
            return Err(
                Failure::usage("there is no terminal to ask for a password on")
                    .advise("pass it: berth login -u NAME --password-stdin REGISTRY <FILE"),
            );
        }
        let username = match self.username {
            Some(username) => username,
            None => term::ask("User name: ")?,
        };
        let password = if self.password_stdin {
            password_from_stdin()?
        } else {
            term::ask_secret("Password: ")?
        };
        let login = LoginCreate {
            registry,
            username,
            password,
        };
        let made = cx.client.log_in(&login).await?;
        cx.note(&format!(
            "Logged in at {}. Forget it: berth logout {}",
            made.registry, made.registry
        ));
        Ok(())
    }
}

/// Forgets logins.
pub async fn log_out(cx: &Context, registries: &[String]) -> Outcome {
    for registry in registries {
        cx.client.log_out(registry).await?;
        cx.print(registry)?;
    }
    Ok(())
}
