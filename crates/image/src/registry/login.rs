//! Logging in: credentials are tried at their registry before anybody keeps them.

use std::path::Path;

use reqwest::{Method, StatusCode};

use super::{
    Credential, Credentials, Registries, RegistryConfig, RegistryError,
    client::{Ask, Client, Target},
    endpoint,
};
use crate::{job::Job, reference::check_registry};

impl Registries {
    /// Tries a credential at a registry (`host[:port]`), and keeps it in `file` once that takes it,
    /// for all pulls and pushes from then on.
    ///
    /// # Errors
    /// [`RegistryError::Login`] when the registry does not take it, with nothing kept;
    /// [`RegistryError::Credentials`] when the file cannot be written; what talking to it raises.
    pub async fn log_in(
        &self,
        registry: &str,
        credential: &Credential,
        file: &Path,
        job: &Job,
    ) -> Result<(), RegistryError> {
        check_registry(registry)?;
        self.try_out(registry, credential.clone(), job).await?;
        Credentials::save(file, registry, Some(credential))?;
        self.inner.forget_tokens(registry);
        Ok(())
    }

    /// Forgets what [`Registries::log_in`] kept in `file`. Whether there was anything.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`] when the file cannot be read or written.
    pub fn log_out(&self, registry: &str, file: &Path) -> Result<bool, RegistryError> {
        check_registry(registry)?;
        let known = Credentials::saved(file)?
            .iter()
            .any(|(name, _)| name == registry);
        if known {
            Credentials::save(file, registry, None)?;
        }
        self.inner.forget_tokens(registry);
        Ok(known)
    }

    /// Asks the registry for nothing but its version, as whoever has the credential.
    async fn try_out(
        &self,
        registry: &str,
        credential: Credential,
        job: &Job,
    ) -> Result<(), RegistryError> {
        // A client of its own: what others were granted says nothing of this credential.
        let client = Client::new(RegistryConfig {
            credentials: Credentials::none().with(registry, credential),
            ..self.inner.config.clone()
        })?;
        let target = Target {
            endpoint: endpoint::of_registry(registry, &self.inner.config),
            repository: String::new(),
            scope: String::new(),
        };
        let url = client.base(&target, job).await?;
        let ask = Ask::new(Method::GET, &url, &[StatusCode::OK], "the login");
        match client.send(&target, ask, |request| request, job).await {
            // One that asks nobody who they are takes anything.
            Ok(_) => Ok(()),
            Err(RegistryError::Denied { message, .. }) => Err(RegistryError::Login {
                registry: registry.to_owned(),
                message,
            }),
            Err(other) => Err(other),
        }
    }
}
