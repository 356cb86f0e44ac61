//! The certificate a server shows on TCP: given by the administrator, or made once and kept below
//! the daemon's root. Clients of a self-made one pin its fingerprint.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sha2::{Digest as _, Sha256};

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} holds no {wanted}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What the parser says.
        why: String,
    },
    /// Certificate and key do not go together, or are of a kind that TLS does not take.
    #[error("the certificate {path} cannot be used")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
}

/// A certificate and its key, ready to serve with.
#[derive(Debug, Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    fingerprint: String,
}

impl Identity {
    /// Reads PEM files: the certificate, with its chain after it, and its private key.
    ///
    /// # Errors
    /// As the variants of [`IdentityError`] say.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let pem = read(certificate)?;
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(&pem).collect();
        let content = |path: &Path, wanted, why: String| IdentityError::Content {
            path: path.to_owned(),
            wanted,
            why,
        };
        let chain =
            chain.map_err(|error| content(certificate, "certificate", error.to_string()))?;
        let Some(leaf) = chain.first() else {
            return Err(content(
                certificate,
                "certificate",
                "it has no PEM block of one".into(),
            ));
        };
        let fingerprint = fingerprint_of(leaf);
        let private = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|error| content(key, "private key", error.to_string()))?;
        let unusable = |source| IdentityError::Unusable {
            path: certificate.to_owned(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            config: config.into(),
            fingerprint,
        })
    }

    /// The certificate in `directory`, made for `names` (host names and addresses) when there is
    /// none yet. The key's file is readable by its owner only.
    ///
    /// # Errors
    /// As the variants of [`IdentityError`] say.
    pub fn self_signed(directory: &Path, names: &[String]) -> Result<Self, IdentityError> {
        let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        if !certificate.exists() {
            let made = rcgen::generate_simple_self_signed(names).map_err(IdentityError::Make)?;
            fs::create_dir_all(directory).map_err(file("create", directory))?;
            // The key first: a certificate that is there has its key.
            write(&key, made.signing_key.serialize_pem().as_bytes(), 0o600)?;
            write(&certificate, made.cert.pem().as_bytes(), 0o644)?;
        }
        Self::load(&certificate, &key)
    }

    /// SHA-256 of the certificate, in lower-case hexadecimal: what a client pins.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

fn fingerprint_of(certificate: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(certificate.as_ref());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(file("read", path))
}

/// Durably: temporary name, fsync, rename, fsync of the directory.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(file("create", &temporary))?;
    out.write_all(bytes)
        .and_then(|()| out.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| match path.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        })
        .map_err(file("write", path))
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names() -> Vec<String> {
        vec!["localhost".into(), "127.0.0.1".into()]
    }

    #[test]
    fn a_certificate_is_made_once_and_its_key_kept_private() {
        let directory = tempfile::tempdir().unwrap();
        let tls = directory.path().join("tls");
        let first = Identity::self_signed(&tls, &names()).unwrap();
        let again = Identity::self_signed(&tls, &names()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(first.fingerprint().len(), 64);
        let mode = fs::metadata(tls.join("key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&tls).unwrap().count(), 2);
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let tls = directory.path();
        Identity::self_signed(tls, &names()).unwrap();
        let (certificate, key) = (tls.join("cert.pem"), tls.join("key.pem"));
        let missing = Identity::load(&tls.join("none.pem"), &key).unwrap_err();
        assert!(missing.to_string().contains("none.pem"), "{missing}");
        let swapped = Identity::load(&key, &certificate).unwrap_err();
        assert!(
            matches!(swapped, IdentityError::Content { .. }),
            "{swapped}"
        );
        let other = tls.join("other");
        Identity::self_signed(&other, &names()).unwrap();
        let mixed = Identity::load(&certificate, &other.join("key.pem")).unwrap_err();
        assert!(matches!(mixed, IdentityError::Unusable { .. }), "{mixed}");
    }
}
