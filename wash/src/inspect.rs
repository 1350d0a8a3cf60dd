//! `wash inspect`: what a component imports and exports.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use serde_json::json;
use washlet::artifact::Digest;
use wit_component::{DecodedWasm, OutputToString, WitPrinter};
use wit_parser::{PackageId, Resolve, World, WorldItem, WorldKey};

use crate::args::InspectArgs;
use crate::oci;
use crate::output::{Exit, Failure, Report};

/// Shows the WIT of a file or an image.
pub(crate) async fn run(args: &InspectArgs) -> Result<Report, Failure> {
    let name = &args.component;
    let bytes = match file(name) {
        Some(path) => oci::read(&path)?.into(),
        None => oci::fetch(name, &args.registry).await?.bytes,
    };
    let Wit { text, imports, exports, .. } = decode(&bytes).map_err(|error| {
        Failure::new(Exit::Failed, format!("'{name}' is not a WebAssembly component: {}", capabilities::report(error.as_ref())))
            .hint("build it for the target wasm32-wasip2, or wrap a core module with `wasm-tools component new`")
    })?;
    let digest = Digest::of(&bytes).to_string();
    let data = json!({ "wit": text, "imports": imports, "exports": exports, "digest": digest, "bytes": bytes.len() });
    Ok(Report {
        text,
        data,
        ..Report::default()
    })
}

/// `name` as a file, if it is one or looks like one.
fn file(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let looks = ["/", "~", "./", "../"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name.ends_with(".wasm");
    (looks || path.exists()).then(|| path.to_owned())
}

pub(crate) struct Wit {
    /// As WIT.
    pub(crate) text: String,
    pub(crate) imports: Vec<String>,
    /// Those of them that are labels, each with the interface behind it.
    pub(crate) labelled: Vec<(String, String)>,
    pub(crate) exports: Vec<String>,
}

pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Wit> {
    let decoded = wit_component::decode(bytes)?;
    let (resolve, package) = (decoded.resolve(), decoded.package());
    let names = |items: fn(&World) -> Vec<(&WorldKey, &WorldItem)>| match &decoded {
        DecodedWasm::Component(resolve, world) => {
            let world = resolve.worlds.get(*world);
            let items = world.map(items).unwrap_or_default();
            items
                .into_iter()
                .map(|(key, _)| resolve.name_world_key(key))
                .collect()
        }
        DecodedWasm::WitPackage(..) => Vec::new(),
    };
    let imports = names(|world| world.imports.iter().collect());
    let exports = names(|world| world.exports.iter().collect());
    let labelled = match &decoded {
        DecodedWasm::Component(resolve, world) => {
            let world = resolve.worlds.get(*world);
            let imports = world.into_iter().flat_map(|world| &world.imports);
            imports
                .filter_map(|(key, item)| match (key, item) {
                    (WorldKey::Name(label), WorldItem::Interface { id, .. }) => {
                        Some((label.clone(), resolve.id_of(*id)?))
                    }
                    _ => None,
                })
                .collect()
        }
        DecodedWasm::WitPackage(..) => Vec::new(),
    };
    Ok(Wit {
        text: print(resolve, package)?,
        imports,
        labelled,
        exports,
    })
}

/// The package and all it uses, as one document.
fn print(resolve: &Resolve, package: PackageId) -> anyhow::Result<String> {
    let others: Vec<_> = resolve
        .packages
        .iter()
        .map(|(id, _)| id)
        .filter(|id| *id != package)
        .collect();
    let mut printer = WitPrinter::<OutputToString>::default();
    printer
        .print(resolve, package, &others)
        .map_err(|error| anyhow!("{error:#}"))
        .context("failed to print its WIT")?;
    Ok(printer.output.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_known_with_their_interfaces() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/components/wasm/stores.wasm");
        let wit = decode(&std::fs::read(path).unwrap()).unwrap();
        let store = "wasi:keyvalue/store@0.2.0-draft".to_owned();
        let labels = ["cache", "archive"].map(|label| (label.to_owned(), store.clone()));
        assert_eq!(wit.labelled, labels);
        assert!(wit.imports.contains(&store));
    }

    #[test]
    fn files_are_told_from_images() {
        for name in ["./x", "../x", "/x", "~/x", "x.wasm", "Cargo.toml"] {
            assert!(file(name).is_some(), "{name}");
        }
        for name in ["ghcr.io/acme/x:1", "x", "127.0.0.1:5000/x"] {
            assert!(file(name).is_none(), "{name}");
        }
    }
}
