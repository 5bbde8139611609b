//! Reads settings from file, environment and flags, and tells for every fault which of them it came from.
//!
//! Each value is tried alone on top of the defaults, so that one run reports every fault, not the first. Values from
//! environment and flags are read as text, as a list between commas, or as a truth value or whole number, whichever the
//! setting takes: `123` is a sound name.
//! Reads the environment only where [`Sources::environment`] says so.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Profile, Provider};

use super::Settings;

/// Variables that begin with this are settings: `EVENKEEL__SECTION__KEY`.
const PREFIX: &str = "EVENKEEL__";

/// One value from a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// `section.key`.
    pub key: String,
    /// The value as text.
    pub value: String,
    /// The flag, for messages.
    pub flag: String,
}

/// Everything that settings are read from, weakest first.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables; those without the prefix are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags in the order given; the last wins.
    pub flags: Vec<Override>,
}

impl Sources {
    /// Returns the variables of this process.
    pub fn environment() -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }
}

/// Checked settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Where each setting that is not a default came from, by `section.key`.
    pub origins: BTreeMap<String, String>,
}

impl Loaded {
    /// Returns the settings as TOML, each value that is not a default with its source.
    ///
    /// # Errors
    /// When a value has no form in TOML, for example a path that is not Unicode.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let mut text = String::new();
        let mut section = "";
        let plain = toml::to_string(&self.settings)?;
        for line in plain.lines() {
            text.push_str(line);
            if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']');
            } else if let Some((key, _)) = line.split_once(" = ")
                && let Some(origin) = self.origins.get(&format!("{section}.{key}"))
            {
                text.push_str("  # ");
                text.push_str(origin);
            }
            text.push('\n');
        }
        Ok(text)
    }
}

/// Why settings cannot be used: every fault, each with the place it came from.
#[derive(Debug, thiserror::Error)]
#[error("{} in the settings:\n  {}", count(.faults.len()), .faults.join("\n  "))]
pub struct ConfigError {
    /// One line each.
    pub faults: Vec<String>,
}

fn count(faults: usize) -> String {
    if faults == 1 { "1 fault".into() } else { format!("{faults} faults") }
}

/// Reads and checks settings.
///
/// # Errors
/// Names every unknown key, unreadable value and contradiction, with its source.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut loader = Loader::new();
    if let Some(path) = &sources.file {
        loader.file(path);
    }
    loader.variables(&sources.environment);
    for flag in &sources.flags {
        loader.value(&flag.key, forms(&flag.value), &flag.flag);
    }
    loader.finish()
}

struct Loader {
    schema: Dict,
    merged: Figment,
    origins: BTreeMap<String, String>,
    faults: Vec<String>,
}

impl Loader {
    fn new() -> Self {
        let defaults = Serialized::defaults(Settings::default());
        let schema = defaults.data().ok().and_then(|mut profiles| profiles.remove(&Profile::Default));
        Self {
            schema: schema.unwrap_or_default(),
            merged: Figment::from(defaults),
            origins: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    fn file(&mut self, path: &Path) {
        let source = format!("file {}", path.display());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => return self.faults.push(format!("cannot read {source}: {e}")),
        };
        let sections = match Toml::string(&text).data() {
            Ok(mut profiles) => profiles.remove(&Profile::Default).unwrap_or_default(),
            Err(e) => return self.faults.push(format!("{source}: {}", first_line(&e.to_string()))),
        };
        for (section, value) in sections {
            let Value::Dict(_, keys) = value else {
                self.faults.push(format!("`{section}` ({source}) is not a section: write it as [{section}]"));
                continue;
            };
            for (key, value) in keys {
                self.value(&format!("{section}.{key}"), vec![value], &source);
            }
            if !self.schema.contains_key(&section) {
                self.faults.push(format!("unknown section `{section}` ({source})"));
            }
        }
    }

    fn variables(&mut self, variables: &[(OsString, OsString)]) {
        let mut named: Vec<_> = variables.iter().filter_map(|(k, v)| k.to_str().map(|k| (k, v))).collect();
        named.sort();
        for (name, value) in named {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let source = format!("variable {name}");
            let Some(value) = value.to_str() else {
                self.faults.push(format!("{source} is not Unicode"));
                continue;
            };
            self.value(&rest.to_lowercase().replace("__", "."), forms(value), &source);
        }
    }

    /// Takes the last of `forms` that the setting can be read from.
    fn value(&mut self, key: &str, forms: Vec<Value>, source: &str) {
        let known = key.split_once('.').is_some_and(
            |(section, name)| matches!(self.schema.get(section), Some(Value::Dict(_, keys)) if keys.contains_key(name)),
        );
        if !known {
            return self.faults.push(format!("unknown key `{key}` ({source})"));
        }
        let mut refused = String::new();
        for value in forms.into_iter().rev() {
            let layer = Layer(figment::util::nest(key, value));
            match Figment::from(Serialized::defaults(Settings::default())).merge(&layer).extract::<Settings>() {
                Ok(_) => {
                    self.merged = std::mem::take(&mut self.merged).merge(&layer);
                    self.origins.insert(key.to_owned(), source.to_owned());
                    return;
                }
                Err(e) => refused = e.into_iter().map(|e| e.kind.to_string()).collect::<Vec<_>>().join("; "),
            }
        }
        self.faults.push(format!("`{key}` ({source}): {refused}"));
    }

    fn finish(mut self) -> Result<Loaded, ConfigError> {
        match self.merged.extract::<Settings>() {
            Ok(settings) => {
                for fault in settings.validate() {
                    let source = self.origins.get(fault.key).map_or("default", String::as_str);
                    self.faults.push(format!("`{}` ({source}): {}", fault.key, fault.message));
                }
                if self.faults.is_empty() {
                    return Ok(Loaded { settings, origins: self.origins });
                }
            }
            Err(e) => self.faults.push(first_line(&e.to_string()).to_owned()),
        }
        Err(ConfigError { faults: self.faults })
    }
}

/// Returns a text as it stands, as a list of what stands between its commas and, if it spells one, the truth value or
/// whole number: no setting is of another type.
///
/// figment's own reader of texts is not used: it panics on a backslash behind a character of several bytes (0.10.19).
fn forms(text: &str) -> Vec<Value> {
    let truth = text.parse::<bool>().ok().map(Value::from);
    let spelled = truth.or_else(|| text.parse::<u64>().ok().map(Value::from));
    let list: Vec<&str> = text.split(',').map(str::trim).collect();
    [Value::from(text), Value::from(list)].into_iter().chain(spelled).collect()
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// One value as a source of its own.
struct Layer(Value);

impl Provider for &Layer {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::default()
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let sections = self.0.as_dict().cloned().unwrap_or_default();
        Ok(Profile::Default.collect(sections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(key: &str, value: &str) -> Override {
        Override { key: key.into(), value: value.into(), flag: "--set".into() }
    }

    fn variable(name: &str, value: &str) -> (OsString, OsString) {
        (name.into(), value.into())
    }

    #[test]
    fn flags_beat_variables_beat_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[engine]\nmax_step_tokens = 100\nmax_running_sequences = 7\n[model]\nname='x'")
            .unwrap();
        let sources = Sources {
            file: Some(file.path().into()),
            environment: vec![
                variable("EVENKEEL__ENGINE__MAX_STEP_TOKENS", "200"),
                variable("EVENKEEL__MODEL__NAME", "123"),
                variable("EVENKEEL_GOLDEN", "somewhere"),
            ],
            flags: vec![
                flag("engine.max_step_tokens", "300"),
                flag("server.listen", "[::1]:0"),
                flag("model.images", "a=x, b"),
            ],
        };
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.settings.engine.max_step_tokens, 300);
        assert_eq!(loaded.settings.engine.max_running_sequences, 7);
        assert_eq!(loaded.settings.model.name.as_deref(), Some("123"));
        assert_eq!(loaded.settings.server.listen.port(), 0);
        assert_eq!(loaded.settings.model.images, ["a=x", "b"]);
        assert_eq!(loaded.settings.registry, Settings::default().registry);
        assert_eq!(loaded.origins["engine.max_step_tokens"], "--set");
        assert_eq!(loaded.origins["model.name"], "variable EVENKEEL__MODEL__NAME");
        let text = loaded.to_toml().unwrap();
        assert!(text.contains("max_step_tokens = 300  # --set"), "{text}");
        assert_eq!(toml::from_str::<Settings>(&text).unwrap(), loaded.settings);
    }

    #[test]
    fn every_fault_is_reported_with_its_source() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "listen = 3\n[engine]\nmax_step_token = 1\n[serverr]\nx = 1\n[log]\nformat = 'xml'",
        )
        .unwrap();
        let sources = Sources {
            file: Some(file.path().into()),
            environment: vec![
                variable("EVENKEEL__SERVER__LISTEN", "0.0.0.0:1"),
                variable("EVENKEEL__NO__SUCH", "1"),
                variable("EVENKEEL__ENGINE__KV_CACHE_BYTES", "-1"),
            ],
            flags: vec![flag("engine.max_running_sequences", "1000"), flag("model", "x")],
        };
        let faults = load(&sources).unwrap_err().faults;
        let has = |parts: &[&str]| faults.iter().any(|fault| parts.iter().all(|part| fault.contains(part)));
        assert!(has(&["unknown key `engine.max_step_token`", "file "]), "{faults:#?}");
        assert!(has(&["unknown section `serverr`", "file "]), "{faults:#?}");
        assert!(has(&["`listen`", "not a section"]), "{faults:#?}");
        assert!(has(&["`log.format`", "file ", "xml"]), "{faults:#?}");
        assert!(has(&["`server.listen`", "EVENKEEL__SERVER__LISTEN", "--insecure"]), "{faults:#?}");
        assert!(has(&["unknown key `no.such`", "EVENKEEL__NO__SUCH"]), "{faults:#?}");
        assert!(has(&["`engine.kv_cache_bytes`", "EVENKEEL__ENGINE__KV_CACHE_BYTES"]), "{faults:#?}");
        assert!(has(&["unknown key `model`", "--set"]), "{faults:#?}");
        assert!(has(&["`engine.max_step_tokens`", "default", "max_running_sequences (1000)"]), "{faults:#?}");
    }

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(load(&Sources::default()).unwrap().settings, Settings::default());
    }

    #[test]
    fn another_address_than_loopback_needs_insecure() {
        let open = flag("server.http_listen", "0.0.0.0:0");
        let refused = load(&Sources { flags: vec![open.clone()], ..Sources::default() }).unwrap_err();
        assert_eq!(refused.faults.len(), 1);
        load(&Sources { flags: vec![open, flag("server.insecure", "true")], ..Sources::default() }).unwrap();
    }

    #[test]
    fn budgets_of_zero_are_refused() {
        let keys = [
            "engine.max_waiting_sequences",
            "engine.max_running_sequences",
            "engine.max_step_tokens",
            "engine.kv_cache_bytes",
            "engine.adapter_slot_bytes",
            "registry.memory_bytes",
            "registry.max_upload_bytes",
            "registry.keep_generations",
            "datasets.max_upload_bytes",
            "datasets.max_rows",
            "datasets.max_row_bytes",
            "datasets.max_image_bytes",
            "datasets.max_image_pixels",
            "datasets.max_total_pixels",
            "engine.max_image_bytes",
            "engine.max_image_pixels",
            "engine.max_request_pixels",
            "engine.max_decoding_images",
            "datasets.max_decoded_bytes",
            "server.max_connections",
            "server.max_concurrent_streams",
            "server.handshake_timeout_seconds",
            "server.max_message_bytes",
        ];
        let flags = keys.iter().map(|key| flag(key, "0")).collect();
        let faults = load(&Sources { flags, ..Sources::default() }).unwrap_err().faults;
        for key in keys {
            assert!(faults.iter().any(|fault| fault.contains(&format!("`{key}` (--set)"))), "{key}: {faults:#?}");
        }
    }

    #[test]
    fn what_toml_cannot_write_is_refused() {
        for key in ["engine.prefix_cache_bytes", "engine.kv_cache_bytes", "jobs.memory_bytes"] {
            let above = (i64::MAX as u64 + 1).to_string();
            let faults = load(&Sources { flags: vec![flag(key, &above)], ..Sources::default() }).unwrap_err().faults;
            assert!(faults.len() == 1 && faults[0].contains(&format!("`{key}` (--set)")), "{key}: {faults:#?}");
        }
        for sound in ["0", "9223372036854775807"] {
            let flags = vec![flag("engine.prefix_cache_bytes", sound)];
            load(&Sources { flags, ..Sources::default() }).unwrap();
        }
    }

    #[test]
    fn a_backslash_behind_a_long_character_is_text() {
        let text = "\"¡𐀀0A¡\\A\"";
        let sources = Sources { flags: vec![flag("model.name", text)], ..Sources::default() };
        assert_eq!(load(&sources).unwrap().settings.model.name.as_deref(), Some(text));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}", key in "[a-z.]{0,20}") {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &text).unwrap();
            let flags = vec![flag(&key, &text), flag("model.name", &text), flag("server.listen", &text)];
            let _ = load(&Sources { file: Some(file.path().into()), flags, ..Sources::default() });
        }
    }
}
