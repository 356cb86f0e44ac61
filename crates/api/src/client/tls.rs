//! TLS to a daemon: the system's authorities, one of the user's, or one pinned certificate.
//!
//! The provider is aws-lc-rs, named here and not installed for the process, so that no other part
//! of a program can change it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address::Config,
    connect::broken,
    error::{ClientError, Result},
};

/// Makes TLS of a TCP connection.
pub(super) async fn wrap(
    config: &Config,
    host: &str,
    tcp: TcpStream,
) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Arc::new(Verifier::new(config, Arc::clone(&provider))?);
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error(format!("TLS cannot be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::<Verifier>::clone(&verifier))
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| config_error(format!("{host:?} is not a name or an address")))?;
    TlsConnector::from(Arc::new(client))
        .connect(name, tcp)
        .await
        .map_err(|error| verifier.explain(config, &error))
}

fn config_error(message: String) -> ClientError {
    ClientError::Config {
        message,
        hint: "check --host, BERTH_CA_FILE and BERTH_FINGERPRINT".into(),
    }
}

/// `sha256:<hex>` of a certificate in DER.
fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(certificate) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// How the daemon's certificate is judged.
#[derive(Debug)]
enum Trust {
    /// It chains to an authority and carries the name.
    Authorities(Arc<WebPkiServerVerifier>),
    /// It is this one, whatever it says of itself.
    Pinned(String),
}

/// Judges a certificate and remembers the fingerprint of one it refused.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
    refused: Mutex<Option<(String, String)>>,
}

impl Verifier {
    fn new(config: &Config, provider: Arc<CryptoProvider>) -> Result<Self> {
        let trust = match &config.credential.fingerprint {
            Some(pinned) => Trust::Pinned(parse_fingerprint(pinned)?),
            None => Trust::Authorities(authorities(config, &provider)?),
        };
        Ok(Self {
            trust,
            provider,
            refused: Mutex::new(None),
        })
    }

    /// Says of a failed handshake whether it was the certificate.
    fn explain(&self, config: &Config, error: &io::Error) -> ClientError {
        let refused = self
            .refused
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        match refused {
            Some((fingerprint, why)) => ClientError::Certificate {
                address: config.address.to_string(),
                fingerprint,
                why,
            },
            None => broken(&config.address, error),
        }
    }
}

/// The fingerprint in the form [`fingerprint`] gives it; colons and capitals are accepted.
fn parse_fingerprint(text: &str) -> Result<String> {
    let hex: String = text
        .strip_prefix("sha256:")
        .unwrap_or(text)
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(format!("sha256:{hex}"))
    } else {
        Err(config_error(format!(
            "{text:?} is not a fingerprint: sha256: and 64 hexadecimal digits"
        )))
    }
}

fn authorities(
    config: &Config,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>> {
    let mut roots = RootCertStore::empty();
    // What the system has; single broken entries of it are its own business.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = &config.credential.ca_file {
        let wrong = |why: String| {
            config_error(format!(
                "the authority {} cannot be used: {why}",
                path.display()
            ))
        };
        let found =
            CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
        for certificate in found {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| wrong(error.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(config_error(
            "this system trusts no certificate authority, so no daemon can prove who it is".into(),
        ));
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|error| config_error(format!("the authorities cannot be used: {error}")))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = match &self.trust {
            Trust::Authorities(verifier) => verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            Trust::Pinned(pinned) if *pinned == fingerprint(end_entity) => {
                Ok(ServerCertVerified::assertion())
            }
            Trust::Pinned(pinned) => Err(Error::General(format!(
                "it is not the one pinned, {pinned}"
            ))),
        };
        judged.inspect_err(|error| {
            let why = match error {
                Error::General(why) => why.clone(),
                Error::InvalidCertificate(why) => why.to_string(),
                other => other.to_string(),
            };
            *self
                .refused
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some((fingerprint(end_entity), why));
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
