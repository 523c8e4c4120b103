//! Files of `NAME='value'` that an init container leaves for the others (fileKeyRef). Pure; what a container wrote is not trusted.
//! <https://kubernetes.io/docs/tasks/inject-data-application/define-environment-variable-via-file/#env-file-syntax>

/// The largest file that is read, in bytes.
pub const FILE_LIMIT: u64 = 64 * 1024;
/// The longest name and value.
const NAME_LIMIT: usize = 128;
const VALUE_LIMIT: usize = 32 * 1024;

/// The value of a name; the last one, where there are several. The error says what is wrong on which line, without showing it.
pub fn value<'t>(text: &'t str, name: &str) -> Result<Option<&'t str>, String> {
    let mut rest = text;
    let mut found = None;
    while !rest.is_empty() {
        let line = 1 + text.len().checked_sub(rest.len()).and_then(|at| text.get(..at)).map_or(0, |t| t.matches('\n').count());
        let wrong = |what: &str| format!("line {line}: {what}");
        let start = rest.trim_start_matches([' ', '\t', '\r']);
        if let Some(after) = start.strip_prefix('\n') {
            rest = after;
            continue;
        }
        if start.is_empty() || start.starts_with('#') {
            rest = start.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        let (key, after) = start.split_once('=').ok_or_else(|| wrong("must be NAME='value'"))?;
        let key = key.trim_end_matches([' ', '\t']);
        let plain = |c: char| c.is_ascii_graphic() || c == ' ';
        if key.is_empty() || key.len() > NAME_LIMIT || !key.chars().all(plain) {
            return Err(wrong("the name must be 1 to 128 printable characters without '='"));
        }
        let quoted = after.trim_start_matches([' ', '\t']).strip_prefix('\'');
        let quoted = quoted.ok_or_else(|| wrong("the value must be in single quotes"))?;
        let (value, after) = quoted.split_once('\'').ok_or_else(|| wrong("the closing single quote is missing"))?;
        if value.len() > VALUE_LIMIT {
            return Err(wrong("the value is longer than 32 KiB"));
        }
        let (tail, next) = after.split_once('\n').unwrap_or((after, ""));
        let tail = tail.trim();
        if !tail.is_empty() && !tail.starts_with('#') {
            return Err(wrong("nothing but a comment may follow the closing quote"));
        }
        if key == name {
            found = Some(value);
        }
        rest = next;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("A='1'", Ok(Some("1")))]
    #[case("  A = 'x y' \nB='2'", Ok(Some("x y")))]
    #[case("# A='0'\n\nB='2'\nA='1'\nA='3'\n", Ok(Some("3")))]
    #[case("M='one\n# two'\nA='1'", Ok(Some("1")))]
    #[case("A='one\ntwo'", Ok(Some("one\ntwo")))]
    #[case("A='$(B) \\n # no'", Ok(Some("$(B) \\n # no")))]
    #[case("B='1'", Ok(None))]
    #[case("", Ok(None))]
    #[case("A=1", Err("line 1: the value must be in single quotes"))]
    #[case("B='1'\nA=\"1\"", Err("line 2: the value must be in single quotes"))]
    #[case("A='1''2'", Err("line 1: nothing but a comment may follow the closing quote"))]
    #[case("A='1", Err("line 1: the closing single quote is missing"))]
    #[case("\n\nnothing", Err("line 3: must be NAME='value'"))]
    fn syntax(#[case] text: &str, #[case] expected: Result<Option<&str>, &str>) {
        assert_eq!(value(text, "A"), expected.map_err(str::to_owned));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_a_panic(text in ".*") {
            let _ = value(&text, "A");
        }
    }
}
