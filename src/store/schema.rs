//! The tables, and how an older database becomes this one.
//!
//! Says nothing about what is read or written: see `catalog`. A migration that was released is never edited; a change
//! is a further entry of [`MIGRATIONS`].

use std::time::Duration;

use rusqlite::Connection;

use super::StoreError;

/// Scripts in order; the version of a database is the number of those that ran.
const MIGRATIONS: &[&str] = &[ADAPTERS, DATASETS, LINEAGE, JOBS, CHILDREN, REPORTS];

const ADAPTERS: &str = "
    CREATE TABLE adapters (
        name TEXT PRIMARY KEY,
        current TEXT NOT NULL,
        pinned INTEGER NOT NULL,
        created INTEGER NOT NULL,
        FOREIGN KEY (name, current) REFERENCES generations (adapter, id) DEFERRABLE INITIALLY DEFERRED
    ) STRICT;
    CREATE TABLE generations (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        adapter TEXT NOT NULL REFERENCES adapters (name) ON DELETE CASCADE,
        id TEXT NOT NULL,
        base TEXT NOT NULL,
        config_blob TEXT NOT NULL,
        tensor_blob TEXT NOT NULL,
        info TEXT NOT NULL,
        effect REAL NOT NULL,
        bytes INTEGER NOT NULL,
        created INTEGER NOT NULL,
        UNIQUE (adapter, id)
    ) STRICT;
    CREATE INDEX generations_config ON generations (config_blob);
    CREATE INDEX generations_tensor ON generations (tensor_blob);
    CREATE TABLE aliases (
        name TEXT PRIMARY KEY,
        adapter TEXT NOT NULL,
        generation TEXT NOT NULL,
        updated INTEGER NOT NULL,
        FOREIGN KEY (adapter, generation) REFERENCES generations (adapter, id)
    ) STRICT;
    CREATE INDEX aliases_target ON aliases (adapter, generation);
    CREATE TABLE requests (
        method TEXT NOT NULL,
        id TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        response TEXT NOT NULL,
        created INTEGER NOT NULL,
        PRIMARY KEY (method, id)
    ) STRICT;
    CREATE INDEX requests_created ON requests (created);
";

const LINEAGE: &str = "ALTER TABLE generations ADD COLUMN lineage TEXT;";

const JOBS: &str = "
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        adapter TEXT NOT NULL,
        alias TEXT,
        dataset TEXT NOT NULL,
        checkpoint TEXT,
        place INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX jobs_state ON jobs (state, place);
    CREATE INDEX jobs_checkpoint ON jobs (checkpoint);
    CREATE TABLE job_events (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        time INTEGER NOT NULL,
        event TEXT NOT NULL,
        PRIMARY KEY (job, number)
    ) STRICT, WITHOUT ROWID;
";

const CHILDREN: &str = "
    ALTER TABLE jobs ADD COLUMN kind TEXT NOT NULL DEFAULT 'fine_tuning';
    ALTER TABLE jobs ADD COLUMN parent TEXT;
    ALTER TABLE jobs ADD COLUMN name TEXT NOT NULL DEFAULT '';
    UPDATE jobs SET name = adapter;
    CREATE INDEX jobs_parent ON jobs (parent) WHERE parent IS NOT NULL;
    CREATE TABLE generation_holds (
        adapter TEXT NOT NULL,
        generation TEXT NOT NULL,
        holder TEXT NOT NULL,
        PRIMARY KEY (adapter, generation, holder),
        FOREIGN KEY (adapter, generation) REFERENCES generations (adapter, id)
    ) STRICT;
    CREATE INDEX generation_holds_holder ON generation_holds (holder);
";

const REPORTS: &str = "
    CREATE TABLE audit_reports (
        place INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        name TEXT NOT NULL,
        created INTEGER NOT NULL,
        summary TEXT NOT NULL,
        UNIQUE (name, id)
    ) STRICT;
    CREATE INDEX audit_reports_id ON audit_reports (id);
    CREATE TABLE audit_report_models (
        report INTEGER NOT NULL REFERENCES audit_reports (place) ON DELETE CASCADE,
        adapter TEXT NOT NULL,
        generation TEXT NOT NULL,
        PRIMARY KEY (adapter, generation, report)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX audit_report_models_report ON audit_report_models (report);
    CREATE TABLE audit_policies (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    ALTER TABLE aliases ADD COLUMN policy TEXT REFERENCES audit_policies (name);
";

const DATASETS: &str = "
    CREATE TABLE dataset_contents (
        id TEXT PRIMARY KEY,
        blob TEXT NOT NULL,
        declaration TEXT NOT NULL,
        summary TEXT NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX dataset_contents_blob ON dataset_contents (blob);
    CREATE TABLE datasets (
        name TEXT PRIMARY KEY,
        content TEXT NOT NULL REFERENCES dataset_contents (id),
        created INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX datasets_content ON datasets (content);
    CREATE TABLE dataset_holds (
        content TEXT NOT NULL REFERENCES dataset_contents (id),
        holder TEXT NOT NULL,
        PRIMARY KEY (content, holder)
    ) STRICT;
    CREATE INDEX dataset_holds_holder ON dataset_holds (holder);
";

/// Sets the connection up and runs the migrations that are missing.
///
/// # Errors
/// When the database was written by a newer version, or fails.
pub(super) fn prepare(database: &mut Connection) -> Result<(), StoreError> {
    database.busy_timeout(Duration::from_secs(5))?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.pragma_update(None, "synchronous", "FULL")?;
    database.pragma_update(None, "foreign_keys", true)?;
    migrate(database, MIGRATIONS)
}

fn migrate(database: &mut Connection, migrations: &[&str]) -> Result<(), StoreError> {
    let transaction = database.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, applied INTEGER NOT NULL) STRICT",
    )?;
    let found: u32 = transaction.query_row("SELECT coalesce(max(version), 0) FROM migrations", [], |r| r.get(0))?;
    let found = found as usize;
    if found > migrations.len() {
        let known = migrations.len();
        let fault = format!("schema {found} was written by a newer version; this one knows schema {known}");
        let source = std::io::Error::new(std::io::ErrorKind::Unsupported, fault);
        return Err(StoreError::Io { path: "evenkeel.db".into(), source });
    }
    for (version, script) in (1_i64..).zip(migrations).skip(found) {
        transaction.execute_batch(script)?;
        transaction.execute("INSERT INTO migrations VALUES (?1, unixepoch())", [version])?;
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_database_is_migrated_and_a_newer_one_is_refused() {
        let mut database = Connection::open_in_memory().unwrap();
        migrate(&mut database, &["CREATE TABLE a (x)"]).unwrap();
        let two = ["CREATE TABLE a (x)", "CREATE TABLE b (x)"];
        migrate(&mut database, &two).unwrap();
        database.execute("INSERT INTO b VALUES (1)", []).unwrap();
        migrate(&mut database, &two).unwrap();
        let versions: Vec<i64> = database
            .prepare("SELECT version FROM migrations ORDER BY version")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(versions, [1, 2]);
        let error = migrate(&mut database, &two[..1]).unwrap_err();
        let StoreError::Io { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains("newer"), "{source}");
    }

    #[test]
    fn jobs_of_the_first_version_are_fine_tunings() {
        let mut database = Connection::open_in_memory().unwrap();
        migrate(&mut database, &MIGRATIONS[..4]).unwrap();
        let old =
            "INSERT INTO jobs (id, state, adapter, dataset, place, record) VALUES ('j', 'failed', 'a', 'd', 1, '{}')";
        database.execute(old, []).unwrap();
        migrate(&mut database, MIGRATIONS).unwrap();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let found: (String, String, Option<String>) =
            database.query_row("SELECT kind, name, parent FROM jobs", [], read).unwrap();
        assert_eq!(found, ("fine_tuning".into(), "a".into(), None));
    }

    #[test]
    fn a_failing_migration_leaves_the_older_database() {
        let mut database = Connection::open_in_memory().unwrap();
        migrate(&mut database, &["CREATE TABLE a (x)"]).unwrap();
        migrate(&mut database, &["", "CREATE TABLE b (x); nonsense"]).unwrap_err();
        database.execute("INSERT INTO b VALUES (1)", []).unwrap_err();
        migrate(&mut database, &["", "CREATE TABLE b (x)"]).unwrap();
    }
}
