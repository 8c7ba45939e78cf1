"""A trained model that answers texts: found, loaded, asked, its answers shown."""
