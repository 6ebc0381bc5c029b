# Run by cpack on the files of a .deb before they are packed: adds what Debian's policy wants, compresses what it wants
# compressed.
set(root ${CPACK_TEMPORARY_DIRECTORY})
unset(ENV{DESTDIR})  # file(INSTALL) would put it before the destinations below
set(doc ${root}/usr/share/doc/gemma4)
file(INSTALL ${CPACK_GEMMA4_SOURCE}/packaging/gemma4.default DESTINATION ${root}/etc/default RENAME gemma4
     PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
file(REMOVE ${doc}/gemma4.default ${doc}/LICENSE)  # the licence is in copyright
file(INSTALL ${CPACK_GEMMA4_SOURCE}/packaging/debian/copyright DESTINATION ${doc})
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)
file(WRITE ${doc}/changelog.Debian "gemma4 (${CPACK_PACKAGE_VERSION}) unstable; urgency=medium

  * See CHANGELOG.md.

 -- ${CPACK_DEBIAN_PACKAGE_MAINTAINER}  ${date}
")
file(RENAME ${doc}/changelog.Debian ${doc}/changelog)
file(GLOB pages ${root}/usr/share/man/man1/*.1)
execute_process(COMMAND gzip -9nf ${doc}/changelog ${pages} COMMAND_ERROR_IS_FATAL ANY)
# Debian keeps directories at 0755 whatever the umask was.
execute_process(COMMAND chmod -R u=rwX,go=rX ${root}/usr ${root}/etc COMMAND_ERROR_IS_FATAL ANY)
