//! The syntax of names, labels, ports and environment variables, with the sentences that Kubernetes has for what is wrong.

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const CHARACTERS: &str = "characters";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// Some of Kubernetes' sentences count bytes, and some characters, of what must be ASCII.
fn too_long(text: &str, limit: usize, unit: &str) -> Option<String> {
    (text.len() > limit).then(|| format!("must be no more than {limit} {unit}"))
}

fn bounded_by(text: &str, outer: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    match text.as_bytes() {
        [] => false,
        [one] => outer(*one),
        [first, middle @ .., last] => outer(*first) && outer(*last) && middle.iter().all(|b| inner(*b)),
    }
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    bounded_by(text, lower, |b| lower(b) || b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified(text: &str) -> bool {
    bounded_by(text, |b| b.is_ascii_alphanumeric(), |b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A DNS label: a container's name, a namespace, a host name.
pub fn dns_label(text: &str) -> Vec<String> {
    let wrong = (!is_label(text)).then(|| {
        if is_subdomain(text) {
            return "must not contain dots".to_owned();
        }
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an \
         alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '"
            .to_owned()
            + LABEL
            + "')"
    });
    too_long(text, 63, CHARACTERS).into_iter().chain(wrong).collect()
}

/// A DNS subdomain: a pod's name, a ConfigMap's.
pub fn dns_subdomain(text: &str) -> Vec<String> {
    let wrong = (!is_subdomain(text)).then(|| {
        format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end \
             with an alphanumeric character (e.g. 'example.com', regex used for validation is '{LABEL}(\\.{LABEL})*')"
        )
    });
    too_long(text, 253, CHARACTERS).into_iter().chain(wrong).collect()
}

/// A domain that names are looked for in: its parts may have `_` in them, and begin with one.
pub fn dns_search(text: &str) -> Vec<String> {
    const PART: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let part = |part: &str| bounded_by(part.strip_prefix('_').unwrap_or(part), lower, |b| lower(b) || matches!(b, b'-' | b'_'));
    let wrong = (!text.split('.').all(part)).then(|| {
        format!(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and \
             end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{PART}(\\.{PART})*')"
        )
    });
    too_long(text, 253, CHARACTERS).into_iter().chain(wrong).collect()
}

/// A label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let wrong = (!text.is_empty() && !is_qualified(text)).then(|| {
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
         an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is \
         '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
            .to_owned()
    });
    too_long(text, 63, "bytes").into_iter().chain(wrong).collect()
}

/// Whether it can be the name of a resource beside Kubernetes' own, such as a device plugin's.
pub fn is_extended_resource(name: &str) -> bool {
    let foreign = name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.");
    foreign && qualified_name(&format!("requests.{name}")).is_empty()
}

/// A label's or an annotation's key: `name` or `prefix/name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let syntax = format!(
        "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
         'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{QUALIFIED}')"
    );
    let mut errors = Vec::new();
    let (prefix, name) = match text.split_once('/') {
        None => (None, text),
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "a valid label key {syntax} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
    };
    match prefix {
        Some("") => errors.push("prefix part must be non-empty".into()),
        Some(prefix) => errors.extend(dns_subdomain(prefix).into_iter().map(|e| format!("prefix part {e}"))),
        None => {}
    }
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else {
        errors.extend(too_long(name, 63, "bytes").map(|e| format!("name part {e}")));
    }
    if !is_qualified(name) {
        errors.push(format!("name part {syntax}"));
    }
    errors
}

/// The name of an environment variable: Kubernetes takes all that is printable ASCII but `=`.
pub fn env_name(text: &str) -> Vec<String> {
    if !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

/// A port's name (`IANA_SVC_NAME`).
pub fn port_name(text: &str) -> Vec<String> {
    let checks: [(bool, &str); 5] = [
        (text.len() > 15, "must be no more than 15 characters"),
        (
            text.is_empty() || !text.bytes().all(|b| lower(b) || b == b'-'),
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (!text.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)"),
        (text.contains("--"), "must not contain consecutive hyphens"),
        (text.starts_with('-') || text.ends_with('-'), "must not begin or end with a hyphen"),
    ];
    checks.into_iter().filter(|(wrong, _)| *wrong).map(|(_, message)| message.to_owned()).collect()
}

/// A port's number.
pub fn port_number(port: i32) -> Option<&'static str> {
    (!(1..=65535).contains(&port)).then_some("must be between 1 and 65535, inclusive")
}

/// A key of a ConfigMap or Secret: also the name of the file that it becomes.
pub fn config_key(text: &str) -> Vec<String> {
    let wrong = !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) || text.is_empty();
    let mut errors: Vec<String> = too_long(text, 253, CHARACTERS).into_iter().collect();
    if wrong {
        errors.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or \
             'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .into(),
        );
    }
    match text {
        "." | ".." => errors.push(format!("must not be '{text}'")),
        _ if text.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// `metadata.uid` of a file's pod: it becomes a folder's name.
pub fn uid(text: &str) -> Vec<String> {
    let fine = (1..=63).contains(&text.len()) && text.bytes().all(|b| lower(b) || b == b'-');
    if fine { Vec::new() } else { vec!["must be 1 to 63 lower case letters, digits and '-'".into()] }
}
