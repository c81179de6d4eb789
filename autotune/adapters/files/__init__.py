"""What users give: study, model, text and traffic files; what goes out to them."""
