//! Names of WIT interfaces, and which of them mean the same.

use semver::Version;
use std::collections::BTreeMap;
use std::fmt;

/// The name of an import or export that is an interface: `ns:pkg/interface@version`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WitName {
    /// `wasi`
    pub namespace: String,
    /// `http`
    pub package: String,
    /// `types`
    pub interface: String,
    /// `None` means any.
    pub version: Option<Version>,
}

impl WitName {
    /// Reads `ns:pkg/interface@version`; `None` for names of another shape (functions, labels).
    pub fn parse(name: &str) -> Option<Self> {
        let (path, version) = match name.split_once('@') {
            Some((path, version)) => (path, Some(Version::parse(version).ok()?)),
            None => (name, None),
        };
        let (namespace, rest) = path.split_once(':')?;
        let (package, interface) = rest.split_once('/')?;
        if namespace.is_empty() || package.is_empty() || interface.is_empty() {
            return None;
        }
        Some(Self {
            namespace: namespace.to_owned(),
            package: package.to_owned(),
            interface: interface.to_owned(),
            version,
        })
    }

    /// Whether this is an interface of `namespace:package`.
    pub fn is_of(&self, namespace: &str, package: &str) -> bool {
        self.namespace == namespace && self.package == package
    }
}

impl fmt::Display for WitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.namespace, self.package, self.interface)?;
        match &self.version {
            Some(version) => write!(f, "@{version}"),
            None => Ok(()),
        }
    }
}

/// One import of a component that is an interface, by the interface's own name or by a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// What the component calls it, if that is not the interface's name.
    pub label: Option<String>,
    /// The interface.
    pub wit: WitName,
}

impl Import {
    /// An import called `name` that says to implement `implements`; `None` when it is no interface.
    pub fn parse(name: &str, implements: Option<&str>) -> Option<Self> {
        Some(match implements {
            Some(interface) => Self {
                label: Some(name.to_owned()),
                wit: WitName::parse(interface)?,
            },
            None => Self {
                label: None,
                wit: WitName::parse(name)?,
            },
        })
    }
}

/// Shape: as the component calls it.
impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => f.write_str(label),
            None => self.wit.fmt(f),
        }
    }
}

/// Whether a thing of version `a` serves where `b` is wanted, by the component model's canonical versions.
///
/// Shape: same major above 0, same minor for 0.x, exact for 0.0.x and pre-releases; no version is any.
pub fn compatible(a: Option<&Version>, b: Option<&Version>) -> bool {
    let (Some(a), Some(b)) = (a, b) else {
        return true;
    };
    if !a.pre.is_empty() || !b.pre.is_empty() {
        return a == b;
    }
    match (a.major, a.minor) {
        (0, 0) => a == b,
        (0, minor) => b.major == 0 && b.minor == minor,
        (major, _) => b.major == major,
    }
}

/// One host interface entry of a workload: what it asks of the host, and how.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct WitInterface {
    /// The label of the imports it serves, and for keys and values the bucket that is asked for; empty for
    /// plain imports.
    pub name: String,
    /// `wasi`
    pub namespace: String,
    /// `keyvalue`
    pub package: String,
    /// At least one.
    pub interfaces: Vec<String>,
    /// `None` means any.
    pub version: Option<Version>,
    /// May hold secrets: never shown.
    pub config: BTreeMap<String, String>,
}

impl WitInterface {
    /// Whether it is the entry without a name of `namespace:package`.
    pub fn is_plain(&self, namespace: &str, package: &str) -> bool {
        self.name.is_empty() && self.namespace == namespace && self.package == package
    }

    /// The names of the interfaces it lists.
    pub fn names(&self) -> impl Iterator<Item = WitName> + '_ {
        self.interfaces.iter().map(|interface| WitName {
            namespace: self.namespace.clone(),
            package: self.package.clone(),
            interface: interface.clone(),
            version: self.version.clone(),
        })
    }

    /// The buckets whose changes components are told of: the config key `watch` of an entry of `wasi:keyvalue`.
    ///
    /// Shape: an entry's own name stands for its bucket, as it does for `store.open`.
    pub fn watched(&self) -> impl Iterator<Item = &str> {
        let is_keyvalue = self.namespace == "wasi" && self.package == "keyvalue";
        let text = |key: &str| self.config.get(key).map(|value| value.trim());
        let own = text("bucket").filter(|bucket| !bucket.is_empty());
        let watch = text("watch").filter(|_| is_keyvalue).unwrap_or_default();
        let buckets = watch.split(',').map(str::trim);
        let buckets = buckets.filter(|bucket| !bucket.is_empty());
        buckets.map(move |bucket| match bucket == self.name {
            true => own.unwrap_or(bucket),
            false => bucket,
        })
    }

    /// Whether `name` belongs to this entry's package, in a version that serves.
    pub fn covers(&self, name: &WitName) -> bool {
        name.is_of(&self.namespace, &self.package)
            && compatible(self.version.as_ref(), name.version.as_ref())
    }
}

impl fmt::Display for WitInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}/{}",
            self.namespace,
            self.package,
            self.interfaces.join(",")
        )?;
        if let Some(version) = &self.version {
            write!(f, "@{version}")?;
        }
        match self.name.as_str() {
            "" => Ok(()),
            name => write!(f, " named {name}"),
        }
    }
}

impl fmt::Debug for WitInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {{ config: {} keys }}", self.config.len())
    }
}

/// A package as a host interface serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// `wasi`
    pub namespace: &'static str,
    /// `keyvalue`
    pub package: &'static str,
    /// All of the package that is served.
    pub interfaces: &'static [&'static str],
    /// `0.2.0-draft`
    pub version: &'static str,
}

impl Served {
    /// Whether it serves `name`.
    pub fn serves(&self, name: &WitName) -> bool {
        name.is_of(self.namespace, self.package)
            && self.interfaces.contains(&name.interface.as_str())
            && compatible(
                Version::parse(self.version).ok().as_ref(),
                name.version.as_ref(),
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_keyvalue_names_buckets_to_watch() {
        let entry = |name: &str, package: &str, config: &[(&str, &str)]| WitInterface {
            name: name.to_owned(),
            namespace: "wasi".to_owned(),
            package: package.to_owned(),
            config: config
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..WitInterface::default()
        };
        let two = entry("", "keyvalue", &[("watch", " a, ,b ")]);
        assert_eq!(two.watched().collect::<Vec<_>>(), ["a", "b"]);
        let config = [("watch", "cache,b"), ("bucket", "real")];
        let own = entry("cache", "keyvalue", &config);
        assert_eq!(own.watched().collect::<Vec<_>>(), ["real", "b"]);
        let same = entry("cache", "keyvalue", &config[..1]);
        assert_eq!(same.watched().collect::<Vec<_>>(), ["cache", "b"]);
        assert_eq!(entry("", "keyvalue", &[]).watched().count(), 0);
        assert_eq!(entry("", "config", &config).watched().count(), 0);
    }

    #[test]
    fn names_are_read_and_written() {
        for text in [
            "wasi:http/types@0.2.3",
            "wasi:keyvalue/store@0.2.0-draft",
            "acme:a/b",
        ] {
            assert_eq!(WitName::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "run",
            "wasi:http",
            "wasi:http/",
            ":a/b",
            "a:b/c@not.a.version",
            "",
        ] {
            assert_eq!(WitName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn versions_are_compatible_by_the_component_model() {
        for (a, b, expected) in [
            ("0.2.0", "0.2.2", true),
            ("0.2.0", "0.3.0", false),
            ("1.0.0", "1.9.3", true),
            ("1.0.0", "2.0.0", false),
            ("0.0.1", "0.0.2", false),
            ("0.2.0-draft", "0.2.0", false),
            ("0.2.0-draft", "0.2.0-draft", true),
        ] {
            let (a, b) = (Version::parse(a).unwrap(), Version::parse(b).unwrap());
            assert_eq!(compatible(Some(&a), Some(&b)), expected, "{a} {b}");
            assert_eq!(compatible(Some(&b), Some(&a)), expected, "{b} {a}");
            assert!(compatible(None, Some(&b)) && compatible(Some(&a), None));
        }
    }
}
