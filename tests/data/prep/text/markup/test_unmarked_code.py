import pytest

from bc2.data.prep.text.markup.unmarked_code import is_unmarked_code


@pytest.mark.parametrize(
    "piece",
    [
        "smtpd_tls_key_file=/etc/ssl/private/ssl-cert-snakeoil.key\nsmtpd_tls_security_level=may\n",
        "Device         Start        End   Sectors   Size Type\n/dev/sda1   2048   4095   2048",
        '    oLib = oLibContainer.GetByName("Lib")',
        "    vOut = vA > vB Or vB > vC ' 返回 -1",
        '「=IMSIN("4-3i")」返回 -7.61923172032141+6.548120040911i。',
        'if [ "$foo" = "$bar" ] ; then …',
        "/var/lib/apt/lists/deb.debian.org_debian_dists_distribution_Release",
        "root:$1$Xop0FYH9$IfxyQwBe9b8tiyIkt2P4F/:13262:0:99999:7:::",
        "#localip 192.168.0.234-238,192.168.0.245",
        "ORG.LIBREOFFICE.WEEKNUM_OOO",
        "package-name_upstream-version-debian.revision.dsc",
        '40 3 1-7 * *   [ "$(date +%a)" == "Mon" ] && command -args',
    ],
)
def test_code_and_listings(piece):
    assert is_unmarked_code(piece)


@pytest.mark.parametrize(
    "piece",
    [
        "",
        "XK9@@##qW%%zz^^Rt~~pL$$mN**bV## ",
        "首页 > | > > | _ _ | 》》 ★★★★★★★★★★",
        "ä¸­å\x9b½äººæ°\x91=å\x85±",
        "BUY NOW CHEAP ONLINE BEST PRICE",
        "key=" + "aGVsbG8gd29ybGQgaGVsbG8gd29ybGQ5" * 4,
        "The file is in /etc/ssl/private, and it has to be readable by the server.",
        "取值范围从 -922337203685477.5808 到 +922337203685477.5807。",
    ],
)
def test_neither_noise_nor_sentences(piece):
    assert not is_unmarked_code(piece)
