//! The database file: how it is opened, checked, locked and brought to the present format.
//!
//! `user_version` is the format. A migration is one SQL script in one transaction; before the
//! first one runs on an existing store, a copy of the file is kept beside it.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::{Check, OpenError};
use crate::history::RESTART_GAP;
use crate::record::{LeaseId, Revision};

/// `BRTH`, in SQLite's `application_id`.
const APPLICATION_ID: i32 = 0x4252_5448;

/// Scripts from each format to the next; the first makes an empty file format 1.
///
/// `kv` has a row id on purpose: records of some kilobytes stay whole in the table's leaves, which
/// an index-organized table would spill into overflow pages.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        revision INTEGER NOT NULL,
        next_lease INTEGER NOT NULL
    ) STRICT;
    INSERT INTO meta VALUES (1, 0, 1);
    CREATE TABLE lease (
        id INTEGER PRIMARY KEY,
        ttl_ms INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE kv (
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL,
        created INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        lease INTEGER
    ) STRICT;
    CREATE INDEX kv_lease ON kv (lease) WHERE lease IS NOT NULL;
"];

/// A store that is open, checked, of the present format and ours alone.
pub(super) struct Opened {
    /// The only connection that writes.
    pub(super) connection: Connection,
    /// Held as long as the store is open; the system releases it with the process.
    pub(super) lock: File,
    /// Where revisions continue.
    pub(super) revision: Revision,
    /// Where lease ids continue.
    pub(super) next_lease: u64,
    /// Leases from before.
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// Opens, locks, checks and migrates.
pub(super) fn open(path: &Path, check: Check) -> Result<Opened, OpenError> {
    let lock = lock(path)?;
    create(path)?;
    let mut connection = connect(path)?;
    verify(&connection, path, check)?;
    migrate(&mut connection, path, MIGRATIONS)?;
    let revision = advance(&connection).map_err(|e| classify(path, "advancing its revision", e))?;
    let (next_lease, leases) =
        leases(&connection).map_err(|e| classify(path, "reading its leases", e))?;
    Ok(Opened {
        connection,
        lock,
        revision,
        next_lease,
        leases,
    })
}

/// A connection with the settings every thread uses.
pub(super) fn connect(path: &Path) -> Result<Connection, OpenError> {
    let settings = |path: &Path| {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // The writer checkpoints when it is idle; this bounds the WAL when it never is.
        connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
        connection.pragma_update(None, "journal_size_limit", 32 << 20)?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(connection)
    };
    settings(path).map_err(|source| classify(path, "setting it up", source))
}

/// `store.db` → `store.db.lock`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, ".lock");
    let opened = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|source| OpenError::Io {
            path: lock_path.clone(),
            source,
        })?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(OpenError::Io {
            path: lock_path,
            source,
        }),
    }
}

/// Makes the file, for the owner only, and its name durable.
fn create(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    if path.exists() {
        return Ok(());
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))
        .and_then(|dir| dir.sync_all())
        .map_err(io)
}

/// That the file is ours and whole.
fn verify(connection: &Connection, path: &Path, check: Check) -> Result<(), OpenError> {
    let failed = |source| classify(path, "checking it", source);
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection
        .query_row(tables, [], |row| row.get(0))
        .map_err(failed)?;
    if number("application_id").map_err(failed)? != i64::from(APPLICATION_ID) && tables > 0 {
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
        });
    }
    let pragma = match check {
        Check::Quick => "quick_check(1)",
        Check::Full => "integrity_check(1)",
    };
    let finding: String = connection
        .query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
        .map_err(failed)?;
    if finding == "ok" {
        return Ok(());
    }
    Err(OpenError::Damaged {
        path: path.to_owned(),
        finding,
    })
}

/// Brings the file to the newest format, a transaction per step.
fn migrate(connection: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let failed = |source| classify(path, "bringing it to the present format", source);
    let version = |connection: &Connection| {
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))
    };
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    let found = version(connection).map_err(failed)?;
    if found > known {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    if found > 0 && found < known {
        keep_copy(connection, path, found)?;
    }
    for (step, script) in (1_u32..).zip(migrations).skip(found as usize) {
        let migrate = |connection: &mut Connection| {
            let txn = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            txn.execute_batch(script)?;
            txn.pragma_update(None, "application_id", APPLICATION_ID)?;
            txn.pragma_update(None, "user_version", step)?;
            txn.commit()
        };
        migrate(connection).map_err(failed)?;
    }
    Ok(())
}

/// Copies the store as it is to `store.db.format-N`, once.
fn keep_copy(connection: &Connection, path: &Path, format: u32) -> Result<(), OpenError> {
    let copy = beside(path, &format!(".format-{format}"));
    if copy.exists() {
        return Ok(());
    }
    let partial = beside(&copy, ".partial");
    let io = |source| OpenError::Io {
        path: copy.clone(),
        source,
    };
    if partial.exists() {
        std::fs::remove_file(&partial).map_err(io)?;
    }
    connection
        .execute("VACUUM INTO ?1", [partial.to_string_lossy()])
        .map_err(|source| classify(path, "copying it before changing its format", source))?;
    File::open(&partial)
        .and_then(|file| file.sync_all())
        .map_err(io)?;
    std::fs::rename(&partial, &copy).map_err(io)
}

/// Jumps over every revision that relaxed commits lost to a power cut may have had.
fn advance(connection: &Connection) -> rusqlite::Result<Revision> {
    let sql = "UPDATE meta SET revision = revision + ?1 RETURNING revision";
    connection.query_row(sql, [RESTART_GAP], |row| Ok(Revision(row.get(0)?)))
}

fn leases(connection: &Connection) -> rusqlite::Result<(u64, Vec<(LeaseId, Duration)>)> {
    let next = connection.query_row("SELECT next_lease FROM meta", [], |row| row.get(0))?;
    let mut statement = connection.prepare("SELECT id, ttl_ms FROM lease")?;
    let leases = statement.query_map([], |row| {
        Ok((LeaseId(row.get(0)?), Duration::from_millis(row.get(1)?)))
    })?;
    Ok((next, leases.collect::<Result<_, _>>()?))
}

/// Damage is told apart from everything else, because its remedy is another.
fn classify(path: &Path, doing: &'static str, source: rusqlite::Error) -> OpenError {
    let path = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Damaged {
            path,
            finding: source.to_string(),
        },
        _ => OpenError::Sqlite {
            path,
            doing,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
        let mut connection = connect(path)?;
        migrate(&mut connection, path, migrations)
    }

    #[test]
    fn an_old_store_is_copied_then_upgraded_and_a_failing_step_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("store.db");
        formats(&path, MIGRATIONS).expect("a new store");
        let put = "INSERT INTO kv VALUES ('a', x'01', 1, 1, NULL)";
        connect(&path)
            .expect("opens")
            .execute(put, [])
            .expect("puts");

        let broken = [
            MIGRATIONS[0],
            "ALTER TABLE kv ADD COLUMN extra INTEGER; SELECT nonsense;",
        ];
        assert!(matches!(
            formats(&path, &broken),
            Err(OpenError::Sqlite { .. })
        ));
        formats(&path, MIGRATIONS).expect("the failed step left the old format");

        let good = [
            MIGRATIONS[0],
            "ALTER TABLE kv ADD COLUMN extra INTEGER DEFAULT 7;",
        ];
        formats(&path, &good).expect("upgrades");
        formats(&path, &good).expect("and then has nothing to do");
        let extra: i64 = connect(&path)
            .expect("opens")
            .query_row("SELECT extra FROM kv WHERE key = 'a'", [], |row| row.get(0))
            .expect("the record is there");
        assert_eq!(extra, 7);
        let copy = connect(&beside(&path, ".format-1")).expect("a copy of the old format");
        let version: u32 = copy
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .expect("its format");
        assert_eq!(version, 1);
        assert!(matches!(
            formats(&path, MIGRATIONS),
            Err(OpenError::Newer {
                found: 2,
                known: 1,
                ..
            })
        ));
    }
}
