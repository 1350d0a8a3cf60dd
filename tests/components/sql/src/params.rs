/// A body's statement, and the parameters at its end.
fn split(body: &str) -> Result<(String, Vec<PgValue>), String> {
    let mut statement = String::new();
    let mut params = Vec::new();
    for line in body.lines() {
        match line.strip_prefix('$') {
            Some(param) => params.push(value(param)?),
            None => statement += &format!("{line}\n"),
        }
    }
    Ok((statement, params))
}

/// `KIND TEXT`
fn value(param: &str) -> Result<PgValue, String> {
    let (kind, text) = param.split_once(' ').unwrap_or((param, ""));
    let wrong = |_| format!("no {kind}: {text}");
    Ok(match kind {
        "null" => PgValue::Null,
        "int4" => PgValue::Int4(text.parse().map_err(wrong)?),
        "int8" => PgValue::Int8(text.parse().map_err(wrong)?),
        "serial" => PgValue::Serial(text.parse().map_err(wrong)?),
        "text" => PgValue::Text(text.to_owned()),
        "uuid" => PgValue::Uuid(text.to_owned()),
        "char" => PgValue::Char((1, text.as_bytes().to_vec())),
        _ => return Err(format!("no kind {kind}")),
    })
}
