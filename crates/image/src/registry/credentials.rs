//! Credentials: who we are to each registry, from our own file and from those of other tools.
//!
//! Read at each use, so that a login takes effect at once; never logged. Only our own file is written.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use base64::Engine as _;
use serde::Deserialize;

use super::RegistryError;

const MAX_FILE: u64 = 1 << 20;
/// The key of Docker Hub in the files of Docker and its relatives.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// One way of proving who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User name and password.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        password: String,
    },
    /// An OAuth 2 refresh token (`identitytoken` of Docker's configuration).
    RefreshToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Self::RefreshToken(_) => f.write_str("RefreshToken(…)"),
        }
    }
}

/// Where credentials are looked up: given ones first, then files in order.
///
/// Files have the format of `~/.docker/config.json` and containers' `auth.json`: `{"auths": {"host":
/// {"auth": base64("user:password")}}}`. Keys may name a path below a registry; the longest wins.
/// Credential helpers of Docker (`credsStore`) are not run.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    given: BTreeMap<String, Credential>,
    files: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

impl Credentials {
    /// No credentials.
    pub fn none() -> Self {
        Self::default()
    }

    /// Our own `file` first, then what other tools of this user have: containers' `auth.json` and
    /// Docker's `config.json`.
    pub fn of_user(file: impl Into<PathBuf>) -> Self {
        let mut files = vec![file.into()];
        let var = |name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        files.extend(var("REGISTRY_AUTH_FILE"));
        files.extend(var("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")));
        let home = var("HOME");
        files.extend(
            home.as_ref()
                .map(|home| home.join(".config/containers/auth.json")),
        );
        files.extend(
            var("DOCKER_CONFIG")
                .or_else(|| home.map(|home| home.join(".docker")))
                .map(|dir| dir.join("config.json")),
        );
        Self {
            given: BTreeMap::new(),
            files,
        }
    }

    /// Adds a file to look into after the others.
    pub fn with_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.files.push(file.into());
        self
    }

    /// Adds a credential for a registry (`host[:port]`), before all files.
    pub fn with(mut self, registry: impl Into<String>, credential: Credential) -> Self {
        self.given.insert(registry.into(), credential);
        self
    }

    /// Remembers a credential for a registry in `file`, readable by its owner only, or forgets it when
    /// `None`. Other entries of the file stay. Blocks.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`] when the file cannot be read or written.
    pub fn save(
        file: &Path,
        registry: &str,
        credential: Option<&Credential>,
    ) -> Result<(), RegistryError> {
        let bad = |reason: String| RegistryError::Credentials {
            path: file.to_owned(),
            reason,
        };
        let mut json = match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| bad(format!("not valid at line {}", error.line())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                serde_json::json!({"version": 1, "auths": {}})
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        let auths = json
            .get_mut("auths")
            .and_then(|auths| auths.as_object_mut());
        let auths = auths.ok_or_else(|| bad("it has no `auths`".into()))?;
        match credential {
            Some(Credential::Basic { username, password }) => {
                let auth = base64::engine::general_purpose::STANDARD
                    .encode(format!("{username}:{password}"));
                auths.insert(registry.to_owned(), serde_json::json!({"auth": auth}));
            }
            Some(Credential::RefreshToken(token)) => {
                let entry = serde_json::json!({"identitytoken": token});
                auths.insert(registry.to_owned(), entry);
            }
            None => {
                auths.remove(registry);
            }
        }
        let text = serde_json::to_vec_pretty(&json).map_err(|error| bad(error.to_string()))?;
        crate::store::write_private(file, &text).map_err(|error| bad(error.to_string()))
    }

    /// Registries that `file` has credentials for, each with the user name where it tells one, by
    /// name. A file that does not exist has none. Blocks.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`] when the file cannot be read.
    pub fn saved(file: &Path) -> Result<Vec<(String, Option<String>)>, RegistryError> {
        let auths = read(file)?.unwrap_or_default();
        let user = |entry| match credential(entry) {
            Some(Credential::Basic { username, .. }) => Some(username),
            _ => None,
        };
        Ok(auths
            .iter()
            .map(|(registry, entry)| (registry.clone(), user(entry)))
            .collect())
    }

    /// The credential for a repository of a registry, if any.
    pub(crate) fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, RegistryError> {
        if let Some(credential) = self.given.get(registry) {
            return Ok(Some(credential.clone()));
        }
        for file in &self.files {
            let Some(auths) = read(file)? else { continue };
            if let Some(credential) = lookup(&auths, registry, repository) {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

fn read(file: &Path) -> Result<Option<BTreeMap<String, AuthEntry>>, RegistryError> {
    let bad = |reason: String| RegistryError::Credentials {
        path: file.to_owned(),
        reason,
    };
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(bad(error.to_string())),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(opened, MAX_FILE), &mut bytes)
        .map_err(|e| bad(e.to_string()))?;
    // Positions only: the parser's own message could quote a secret.
    let parsed: Result<AuthFile, _> = serde_json::from_slice(&bytes);
    let parsed = parsed.map_err(|error| bad(format!("not valid at line {}", error.line())))?;
    Ok(Some(parsed.auths))
}

fn lookup(
    auths: &BTreeMap<String, AuthEntry>,
    registry: &str,
    repository: &str,
) -> Option<Credential> {
    let mut key = format!("{registry}/{repository}");
    loop {
        if let Some(entry) = auths.get(&key) {
            return credential(entry);
        }
        match key.rfind('/') {
            Some(slash) => key.truncate(slash),
            None => break,
        }
    }
    // Older tools wrote URLs.
    let hub = (registry == crate::reference::DEFAULT_REGISTRY).then_some(DOCKER_HUB.to_owned());
    let urls = [
        format!("https://{registry}"),
        format!("https://{registry}/v1/"),
        format!("https://{registry}/v2/"),
    ];
    hub.into_iter()
        .chain(urls)
        .find_map(|key| auths.get(&key))
        .and_then(credential)
}

fn credential(entry: &AuthEntry) -> Option<Credential> {
    if let Some(token) = entry
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Some(Credential::RefreshToken(token.clone()));
    }
    if let (Some(username), Some(password)) = (&entry.username, &entry.password) {
        return Some(Credential::Basic {
            username: username.clone(),
            password: password.clone(),
        });
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(entry.auth.as_ref()?.trim())
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credential::Basic {
        username: username.to_owned(),
        // Docker pads with NULs.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_key_and_the_first_file_win_and_nothing_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        // alice:one, bob:two
        std::fs::write(&first, r#"{"auths":{"r.example":{"auth":"YWxpY2U6b25l"},"r.example/team":{"auth":"Ym9iOnR3bw=="}}}"#).unwrap();
        std::fs::write(&second, r#"{"auths":{"r.example":{"auth":"eDp5"},"https://index.docker.io/v1/":{"identitytoken":"t"}}}"#).unwrap();
        let credentials = Credentials::none()
            .with_file(dir.path().join("absent"))
            .with_file(&first)
            .with_file(&second);
        let user = |registry, repository| match credentials.find(registry, repository).unwrap() {
            Some(Credential::Basic { username, .. }) => username,
            Some(Credential::RefreshToken(token)) => format!("token {token}"),
            None => "nobody".into(),
        };
        assert_eq!(user("r.example", "other/app"), "alice");
        assert_eq!(user("r.example", "team/app"), "bob");
        assert_eq!(user("docker.io", "library/x"), "token t");
        assert_eq!(user("else.example", "x"), "nobody");
        assert!(!format!("{:?}", credentials.find("r.example", "x").unwrap()).contains("one"));
        std::fs::write(&first, r#"{"auths": {"r.example": {"auth": 5 secret}}}"#).unwrap();
        let error = credentials.find("r.example", "x").unwrap_err().to_string();
        assert!(
            error.contains("first") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn a_login_is_remembered_privately_and_forgotten_again() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.json");
        let basic = Credential::Basic {
            username: "alice".into(),
            password: "a:b".into(),
        };
        let token = Credential::RefreshToken("t".into());
        Credentials::save(&file, "one.example", Some(&basic)).unwrap();
        Credentials::save(&file, "two.example", Some(&token)).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let credentials = Credentials::none().with_file(&file);
        assert_eq!(credentials.find("one.example", "x").unwrap(), Some(basic));
        assert_eq!(credentials.find("two.example", "x").unwrap(), Some(token));
        Credentials::save(&file, "one.example", None).unwrap();
        assert_eq!(credentials.find("one.example", "x").unwrap(), None);
        assert!(credentials.find("two.example", "x").unwrap().is_some());
    }
}
