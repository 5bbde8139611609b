//! What the kind of an adapter means on the disk: the names of its files, and how older records wrote it.
//!
//! Reads no file.

use serde::{Deserialize, Deserializer};

use crate::lora::Kind;

/// Configuration and tensors of a PEFT folder.
pub(super) const PEFT: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];
/// Configuration and tensors of a whole model.
pub(super) const FULL: [&str; 2] = ["config.json", "model.safetensors"];

/// Returns the names of the two files.
pub(super) fn files(kind: Kind) -> [&'static str; 2] {
    match kind {
        Kind::Lora | Kind::Dora => PEFT,
        Kind::Full => FULL,
    }
}

/// Reads a kind; records of the first version have a flag `dora` instead.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Kind(Kind),
        Dora(bool),
    }
    Ok(match Written::deserialize(deserializer)? {
        Written::Kind(kind) => kind,
        Written::Dora(true) => Kind::Dora,
        Written::Dora(false) => Kind::Lora,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Serialize, Deserialize)]
    struct Record {
        #[serde(alias = "dora", deserialize_with = "read")]
        kind: Kind,
    }

    #[test]
    fn records_of_the_first_version_are_read() {
        let read = |text: &str| serde_json::from_str::<Record>(text).map(|record| record.kind);
        assert_eq!(read(r#"{"dora": true}"#).unwrap(), Kind::Dora);
        assert_eq!(read(r#"{"dora": false}"#).unwrap(), Kind::Lora);
        for kind in [Kind::Lora, Kind::Dora, Kind::Full] {
            let text = serde_json::to_string(&Record { kind }).unwrap();
            assert_eq!(read(&text).unwrap(), kind);
        }
        assert!(read(r#"{"kind": "IA3"}"#).is_err());
    }
}
