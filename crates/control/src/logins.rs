//! Logins of the daemon at registries: kept in a file beside the database, as other tools write
//! theirs, and used by all pulls and pushes that bring no password of their own.

use api::{ErrorCode, Login, LoginCreate, Problem};
use image::{Credential, Credentials, Job, RegistryError};

use crate::{
    Control,
    error::{internal, wrong_field},
};

impl Control {
    pub(crate) async fn logins(&self) -> Result<Vec<Login>, Problem> {
        let file = self.node().parts().paths.credentials();
        let saved = blocking(move || Credentials::saved(&file)).await?;
        let login = |(registry, username)| Login { registry, username };
        Ok(saved.into_iter().map(login).collect())
    }

    pub(crate) async fn new_login(&self, request: LoginCreate) -> Result<Login, Problem> {
        let LoginCreate {
            registry,
            username,
            password,
        } = request;
        if username.is_empty() || username.contains(':') {
            let why = "a user name is not empty and has no colon";
            return Err(wrong_field("username", why));
        }
        let file = self.node().parts().paths.credentials();
        let registries = self.inner.registries.client().map_err(|e| problem(&e))?;
        let credential = Credential::Basic {
            username: username.clone(),
            password,
        };
        registries
            .log_in(&registry, &credential, &file, &Job::silent())
            .await
            .map_err(|error| problem(&error))?;
        let resource = format!("logins/{registry}");
        self.inner
            .events
            .tell("login.created", resource, "kept", []);
        Ok(Login {
            registry,
            username: Some(username),
        })
    }

    pub(crate) async fn forget_login(&self, registry: &str) -> Result<(), Problem> {
        let file = self.node().parts().paths.credentials();
        let registries = self.inner.registries.client().map_err(|e| problem(&e))?;
        let name = registry.to_owned();
        if !blocking(move || registries.log_out(&name, &file)).await? {
            return Err(Problem::not_found("login", registry).hint("berth login lists them"));
        }
        let resource = format!("logins/{registry}");
        self.inner
            .events
            .tell("login.removed", resource, "forgotten", []);
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(internal)?.map_err(|error| problem(&error))
}

fn problem(error: &RegistryError) -> Problem {
    let code = match error {
        RegistryError::Login { .. } => ErrorCode::Denied,
        RegistryError::Name(why) => return wrong_field("registry", why.to_string()),
        _ => ErrorCode::Failed,
    };
    Problem::new(code, crate::error::chain(error))
}
